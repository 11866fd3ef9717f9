"""Pyramid selection: per query tile the cut through the tree of pooled key tiles that is estimated to err least.

Relatives: PSA (arXiv 2512.04025) gives every tile one of several pooling levels by its rank; here tiles of all levels
compete under one budget by their estimated errors (`pyramid_statistics`), and the best combination is found exactly
(`pyramid_cut`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastdit.selectors.pyramid_cut import INF, optimal_cut
from fastdit.selectors.pyramid_statistics import NodeStatistics, node_statistics, pyramid_keys
from fastdit_kernels import BlockMask, TileLayout, pool_key_value, stratified_rows
from fastdit_kernels.block_mask import LEVEL_SHIFT

# Bytes of scores worked on at once: near the cache on a CPU, few launches elsewhere.
CPU_WORKSPACE_BYTES = 4 << 20
WORKSPACE_BYTES = 256 << 20


def select(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    budget: int,
    q_samples: int = 4,
    kv_samples: int | None = None,
    forced: torch.Tensor | None = None,
    max_forced: int = 0,
    scale: float | None = None,
    measure: bool = True,
) -> tuple[BlockMask, torch.Tensor | None]:
    """Build the mask of one layer.

    The first segment of both layouts is the video, a second one the text. Text keys are kept at level 0 by every row
    and count towards the budget; text queries see everything at level 0. A row keeps at least one video tile.

    Args:
        query: `[B, H, S, D]` in tile order, after norms and RoPE.
        key: `[B, H, S, D]` in its own tile order, which may be another one.
        value: `[B, H, S, D]` in the order of `key`.
        q_layout: Query tiles.
        kv_layout: Key tiles with all levels that may be used.
        budget: Most tiles per row, unless text and forced tiles alone are more.
        q_samples: Rows sampled of each query tile.
        kv_samples: Tokens seen of each level-0 key tile; `None` for all, which no peak escapes.
        forced: bool, broadcastable to `[H, NQ, NK]` over video tiles of level 0: kept at level 0 in any case.
        max_forced: At least the number of forced tiles of any row; known on the host.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        measure: Also return the error.

    Returns:
        The mask, and with `measure` the relative output error it gives the sampled rows, `[B, H]`.
    """
    batch, heads, _, dim = query.shape
    video_tiles, text_tiles = q_layout.segment_tiles(0)[0], sum(kv_layout.segment_tiles(0)[1:])
    budget = max(1, budget - text_tiles)
    limit = max(budget, max_forced)
    width = max(limit + text_tiles, kv_layout.num_tiles if q_layout.num_tiles > video_tiles else 0)
    picked = stratified_rows(TileLayout(q_layout.segments[:1], q_layout.tile), q_samples, query.device)
    rows = query.index_select(2, picked).flatten(0, 1)
    pooled_key, pooled_value = (x.flatten(0, 1) for x in pool_key_value(key, value, kv_layout))
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if forced is not None:
        forced = forced.expand(batch, heads, video_tiles, kv_layout.segment_tiles(0)[0]).flatten(0, 1)
    keep = _KeepTable(kv_layout, width, query.device)
    indices, counts = keep.everything(batch * heads, q_layout.num_tiles)
    errors, norms = (rows.new_zeros(batch * heads, dtype=torch.float32) for _ in range(2))
    # Scores of the level-0 tiles are the largest tensor of a query tile.
    per_tile = kv_layout.num_tiles * kv_layout.tile * q_samples * 4
    workspace = CPU_WORKSPACE_BYTES if query.device.type == "cpu" else WORKSPACE_BYTES
    for some_heads, chunks in _chunks(batch * heads, video_tiles, max(1, workspace // per_tile)):
        parts = (x[some_heads] for x in (key, value, pooled_key, pooled_value))
        keys = pyramid_keys(*parts, layout=kv_layout, kv_samples=kv_samples)
        for tiles in chunks:
            chunk = rows[some_heads, tiles.start * q_samples : tiles.stop * q_samples].to(keys.fine.key.dtype)
            statistics = node_statistics(chunk, keys, q_samples, 1 / math.sqrt(dim) if scale is None else scale)
            cut = _cut(statistics, None if forced is None else forced[some_heads, tiles], budget, limit)
            indices[some_heads, tiles], counts[some_heads, tiles] = keep.listed(cut)
            if measure:
                error, norm = statistics.squared_error([level.transpose(1, 2) for level in cut])
                errors[some_heads] += error
                norms[some_heads] += norm
    shape = (batch, heads)
    mask = BlockMask(indices.unflatten(0, shape), counts.unflatten(0, shape), q_layout, kv_layout)
    if not measure:
        return mask, None
    return mask, (errors / norms.clamp_min(torch.finfo(norms.dtype).tiny)).sqrt().view(shape)


def _chunks(groups: int, tiles: int, room: int) -> Iterator[tuple[slice, list[slice]]]:
    """Slices of heads and, for each, slices of query tiles, at most `room` head-tiles at a time."""
    tile_step, group_step = min(room, tiles), max(1, room // tiles)
    chunks = [slice(first, min(first + tile_step, tiles)) for first in range(0, tiles, tile_step)]
    for first in range(0, groups, group_step):
        yield slice(first, min(first + group_step, groups)), chunks


def _cut(statistics: NodeStatistics, forced: torch.Tensor | None, budget: int, limit: int) -> list[torch.Tensor]:
    """The nodes to use, per level bool `[G, t, n]`."""
    use = [error.transpose(1, 2) for error in statistics.use]
    drop = [error.transpose(1, 2) for error in statistics.drop]
    budgets = torch.full(use[0].shape[:2], budget, device=use[0].device)
    if forced is not None:
        budgets = torch.maximum(budgets, forced.sum(2))
        for level in range(len(use)):
            if level > 0:
                forced = F.pad(forced, (0, forced.shape[2] % 2)).unflatten(2, (-1, 2)).any(3)
                use[level] = use[level].masked_fill(forced, INF)
            drop[level] = drop[level].masked_fill(forced, INF)
    # A row with nothing at all would have no output, so it keeps at least one node.
    flat_use, flat_drop = ([level.flatten(0, 1) for level in part] for part in (use, drop))
    cut = optimal_cut(flat_use, flat_drop, budgets.flatten(), limit, min_nodes=1)
    return [level.unflatten(0, use[0].shape[:2]) for level in cut]


class _KeepTable:
    """Turns cuts into lists of mask entries."""

    def __init__(self, layout: TileLayout, width: int, device: torch.device) -> None:
        self._layout, self._width = layout, width
        tiles = torch.arange(layout.total_tiles, device=device)
        packed = (tiles + (layout.tile_levels(device) << LEVEL_SHIFT)).to(torch.int32)
        starts = [layout.level_offset(level) for level in range(layout.num_levels)]
        # Of the text only level 0 is ever listed.
        self._fine = packed[: layout.num_tiles]
        self._text = packed[layout.segment_tiles(0)[0] : layout.num_tiles]
        self._video = torch.cat(
            [packed[start : start + layout.segment_tiles(level)[0]] for level, start in enumerate(starts)]
        )

    def everything(self, groups: int, q_tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Lists of all level-0 tiles for every row, as far as they have room; the video rows are overwritten."""
        indices = torch.zeros(groups, q_tiles, self._width, dtype=torch.int32, device=self._fine.device)
        room = min(self._width, len(self._fine))
        indices[..., :room] = self._fine[:room]
        return indices, torch.full((groups, q_tiles), room, dtype=torch.int32, device=self._fine.device)

    def listed(self, cut: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Entries `[G, t, width]` and counts `[G, t]`: the nodes of the cut, level by level, then the text."""
        keep = torch.cat(cut, 2)
        text = torch.ones((*keep.shape[:2], len(self._text)), dtype=torch.bool, device=keep.device)
        keep = torch.cat([keep, text], 2)
        entries = torch.cat([self._video, self._text])
        slots = torch.where(keep, keep.cumsum(2) - 1, self._width)
        # What is not kept goes to one extra slot, which is cut off.
        indices = torch.zeros((*keep.shape[:2], self._width + 1), dtype=torch.int32, device=keep.device)
        indices.scatter_(2, slots, entries.expand_as(slots))
        return indices[..., :-1], keep.sum(2, dtype=torch.int32)
