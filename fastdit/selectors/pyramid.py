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
from fastdit.selectors.pyramid_keys import PyramidKeys, pyramid_keys
from fastdit.selectors.pyramid_levels import LevelRule, choose_levels
from fastdit.selectors.pyramid_statistics import node_errors, row_errors, tile_mass
from fastdit_kernels import BlockMask, TileLayout, stratified_rows
from fastdit_kernels.block_mask import LEVEL_SHIFT

# Bytes of scores worked on at once: near the cache on a CPU, few launches elsewhere.
CPU_WORKSPACE_BYTES = 4 << 20
WORKSPACE_BYTES = 256 << 20
# Bytes of errors and of tables of the cut held at once; the more rows at once, the fewer small steps.
TABLE_BYTES = 64 << 20


@torch.no_grad()
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
    rule: LevelRule | None = None,
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
        rule: Choose levels by rank instead, with blocks of the coarsest level of `kv_layout`, which must be that of the
            rule. `budget` does not apply.
        measure: Also return the error.

    Returns:
        The mask, and with `measure` the relative output error of it, `[B, H]`, on rows it was not fitted to: see
        `held_out_samples`.
    """
    batch, heads, _, dim = query.shape
    scale = 1 / math.sqrt(dim) if scale is None else scale
    video_tiles, text_tiles = q_layout.segment_tiles(0)[0], sum(kv_layout.segment_tiles(0)[1:])
    budget = max(1, budget - text_tiles)
    limit = max(budget, max_forced)
    if rule is not None:
        blocks = kv_layout.segment_tiles(rule.top)[0]
        limit = min(blocks << rule.top, rule.max_tiles(blocks) + (max_forced << rule.top))
    width = max(limit + text_tiles, kv_layout.num_tiles if q_layout.num_tiles > video_tiles else 0)
    rows = sampled_rows(query, q_layout, q_samples)
    others = sampled_rows(query, q_layout, held_out_samples(q_samples)) if measure else rows
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if forced is not None:
        forced = forced.expand(batch, heads, video_tiles, kv_layout.segment_tiles(0)[0]).flatten(0, 1)
    keep = KeepTable(kv_layout, width, query.device)
    indices, counts = keep.everything(batch * heads, q_layout.num_tiles)
    errors = rows.new_zeros(batch * heads, dtype=torch.float32)
    for some in _head_groups(batch * heads, video_tiles, kv_layout):
        keys = pyramid_keys(key[some], value[some], kv_layout, kv_samples)
        required = None if forced is None else forced[some]
        if rule is None:
            cut = _cut(*_all_errors(rows[some], keys, scale), required, budget, limit)
        else:
            cut = choose_levels(_all_masses(rows[some], keys, scale), key[some], rule, keys.layout, required)
        indices[some, :video_tiles], counts[some, :video_tiles] = keep.listed(cut)
        if measure:
            errors[some] = _measured(others[some], keys, cut, scale)
    shape = (batch, heads)
    mask = BlockMask(indices.unflatten(0, shape), counts.unflatten(0, shape), q_layout, kv_layout)
    return mask, errors.view(shape) if measure else None


def held_out_samples(samples: int) -> int:
    """Rows of a tile on which a choice made from `samples` rows is measured, about half as many.

    Middles of equal parts never coincide if one of the two numbers is divisible by a higher power of two; in tiles of
    few rows they may still round to the same row.
    """
    return samples // 2 if samples % 2 == 0 else 2


def sampled_rows(query: torch.Tensor, layout: TileLayout, samples: int) -> torch.Tensor:
    """Rows of each video tile, `[B * H, t, samples, D]`."""
    picked = stratified_rows(TileLayout(layout.segments[:1], layout.tile), samples, query.device)
    rows: torch.Tensor = query.index_select(2, picked).flatten(0, 1).unflatten(1, (-1, samples))
    return rows


def _head_groups(heads: int, tiles: int, layout: TileLayout) -> Iterator[slice]:
    """Slices of heads whose errors are held at once."""
    nodes = sum(layout.segment_tiles(level)[0] for level in range(layout.num_levels))
    step = max(1, TABLE_BYTES // (tiles * nodes * 8))
    for first in range(0, heads, step):
        yield slice(first, min(first + step, heads))


def _chunks(rows: torch.Tensor, keys: PyramidKeys) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Some heads, some query tiles of theirs and their rows as `node_errors` takes them; few enough for the cache."""
    groups, tiles, samples, _ = rows.shape
    workspace = CPU_WORKSPACE_BYTES if rows.device.type == "cpu" else WORKSPACE_BYTES
    room = max(1, workspace // (keys.layout.num_tiles * keys.layout.tile * samples * 4))
    tile_step, group_step = min(room, tiles), max(1, room // tiles)
    for first_group in range(0, groups, group_step):
        heads = slice(first_group, min(first_group + group_step, groups))
        for first in range(0, tiles, tile_step):
            some = slice(first, min(first + tile_step, tiles))
            yield heads, some, rows[heads, some].transpose(1, 2).flatten(1, 2).to(keys.fine_key.dtype)


def _all_errors(rows: torch.Tensor, keys: PyramidKeys, scale: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Errors of using and of dropping every node, per level `[G, t, n]`."""
    groups, tiles, samples, _ = rows.shape
    counts = [keys.layout.level_tiles(level) for level in range(keys.layout.num_levels)]
    use, drop = ([keys.fine_key.new_empty(groups, tiles, count) for count in counts] for _ in range(2))
    for heads, some, chunk in _chunks(rows, keys):
        for target, found in zip((use, drop), node_errors(chunk, keys.of_heads(heads), samples, scale), strict=True):
            for level, errors in enumerate(found):
                target[level][heads, some] = errors.transpose(1, 2)
    return use, drop


def _all_masses(rows: torch.Tensor, keys: PyramidKeys, scale: float) -> torch.Tensor:
    """Attention mass of the tiles of level 0, `[G, t, n]`."""
    groups, tiles, samples, _ = rows.shape
    mass = keys.fine_key.new_empty(groups, tiles, keys.layout.num_tiles)
    for heads, some, chunk in _chunks(rows, keys):
        mass[heads, some] = tile_mass(chunk, keys.of_heads(heads), samples, scale).transpose(1, 2)
    return mass


def _measured(rows: torch.Tensor, keys: PyramidKeys, cut: list[torch.Tensor], scale: float) -> torch.Tensor:
    """Relative output error of each head, mean over rows, `[G]`: few bad rows do not outweigh all others."""
    groups, tiles, samples, _ = rows.shape
    errors = rows.new_zeros(groups, dtype=torch.float32)
    for heads, some, chunk in _chunks(rows, keys):
        used = [level[heads, some].transpose(1, 2) for level in cut]
        errors[heads] += row_errors(chunk, keys.of_heads(heads), used, samples, scale)
    return errors / (tiles * samples)


def _cut(
    use: list[torch.Tensor], drop: list[torch.Tensor], forced: torch.Tensor | None, budget: int, limit: int
) -> list[torch.Tensor]:
    """The nodes to use, per level bool `[G, t, n]`."""
    shape = use[0].shape
    budgets = torch.full(shape[:2], budget, device=use[0].device)
    if forced is not None:
        budgets = torch.maximum(budgets, forced.sum(2))
        for level in range(len(use)):
            if level > 0:
                forced = F.pad(forced, (0, forced.shape[2] % 2)).unflatten(2, (-1, 2)).any(3)
                use[level].masked_fill_(forced, INF)
            drop[level].masked_fill_(forced, INF)
    flat_use, flat_drop = ([level.flatten(0, 1) for level in part] for part in (use, drop))
    # Tables of as many counts as nodes have leaves are as large as the leaves, at every level.
    step = max(1, TABLE_BYTES // (shape[2] * (1 + shape[2].bit_length()) * 8))
    parts = []
    for first in range(0, shape[0] * shape[1], step):
        trees = slice(first, first + step)
        some_use, some_drop = ([level[trees] for level in part] for part in (flat_use, flat_drop))
        # A row with nothing at all would have no output, so it keeps at least one node.
        parts.append(optimal_cut(some_use, some_drop, budgets.flatten()[trees], limit, min_nodes=1))
    return [torch.cat(level).unflatten(0, shape[:2]) for level in zip(*parts, strict=True)]


class KeepTable:
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
        return self._compact(torch.cat(cut, 2), self._video)

    def listed_tiles(self, found: list[tuple[int, torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Likewise, from levels, numbers of tiles in them `[G, t, M]`, and bool `[G, t, M]` for those that are kept."""
        entries = [tile + (self._layout.level_offset(level) + (level << LEVEL_SHIFT)) for level, tile, _ in found]
        return self._compact(torch.cat([keep for _, _, keep in found], 2), torch.cat(entries, 2).to(torch.int32))

    def _compact(self, keep: torch.Tensor, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        text = self._text.expand(*keep.shape[:2], -1)
        keep = torch.cat([keep, torch.ones_like(text, dtype=torch.bool)], 2)
        entries = torch.cat([entries.expand(*keep.shape[:2], -1), text], 2)
        slots = torch.where(keep, keep.cumsum(2) - 1, self._width)
        # What is not kept goes to one extra slot, which is cut off.
        indices = torch.zeros((*keep.shape[:2], self._width + 1), dtype=torch.int32, device=keep.device)
        indices.scatter_(2, slots, entries)
        return indices[..., :-1], keep.sum(2, dtype=torch.int32)
