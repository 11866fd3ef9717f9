"""Pyramid selection: per query tile the cut through the tree of pooled key tiles that is estimated to err least.

Relatives: PSA (arXiv 2512.04025) gives every tile one of several pooling levels by its rank; here tiles of all levels
compete under one budget by their estimated errors (`pyramid_statistics`), and the best combination is found exactly
(`pyramid_cut`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F

from fastdit.selectors.own_tiles import OwnTiles
from fastdit.selectors.pyramid_cut import INF, optimal_cut
from fastdit.selectors.pyramid_levels import LevelRule, choose_levels
from fastdit.selectors.pyramid_statistics import estimated_errors, estimated_masses
from fastdit_kernels import BlockMask, TileLayout, stratified_rows
from fastdit_kernels.block_mask import LEVEL_SHIFT
from fastdit_kernels.workspace import workspace_bytes

# Bytes of scores worked on at once on a CPU.
CPU_WORKSPACE_BYTES = 4 << 20
# Bytes of errors and of tables of the cut held at once on a CPU; the more rows at once, the fewer small steps.
CPU_TABLE_BYTES = 64 << 20


@torch.no_grad()
def select(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    budgets: Sequence[int | Sequence[int]],
    q_samples: int = 4,
    kv_samples: int | None = None,
    own: OwnTiles | None = None,
    scale: float | None = None,
    rule: LevelRule | None = None,
) -> list[BlockMask]:
    """Build masks of one layer, one for each budget; errors are estimated once for all of them.

    The first segment of both layouts is the video, a second one the text. Text keys are kept at level 0 by every row
    and count towards the budget; text queries see everything at level 0. A row keeps at least one video tile.

    Args:
        query: `[B, H, S, D]` in tile order, after norms and RoPE.
        key: `[B, H, S, D]` in its own tile order, which may be another one.
        value: `[B, H, S, D]` in the order of `key`.
        q_layout: Query tiles.
        kv_layout: Key tiles with all levels that may be used.
        budgets: Of each mask, most tiles per row, unless text and own tiles alone are more; for all heads, or one for
            each head.
        q_samples: Rows sampled of each query tile.
        kv_samples: Tokens seen of each level-0 key tile; `None` for all, which no peak escapes.
        own: Tiles that are kept at level 0 in any case.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        rule: Choose levels by rank instead, with blocks of the coarsest level of `kv_layout`, which must be that of the
            rule. Budgets do not apply.
    """
    batch, heads, _, dim = query.shape
    scale = 1 / math.sqrt(dim) if scale is None else scale
    video_tiles, text_tiles = q_layout.segment_tiles(0)[0], sum(kv_layout.segment_tiles(0)[1:])
    most_own = 0 if own is None else own.most
    rows = sampled_rows(query, q_layout, q_samples)
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    forced = None
    if own is not None:
        held = own.hold(torch.arange(kv_layout.segment_tiles(0)[0], device=query.device), 0)
        forced = held.expand(batch, -1, -1, -1).flatten(0, 1)
    given = [[budget] * heads if isinstance(budget, int) else budget for budget in budgets]
    of_heads = [[max(1, number - text_tiles) for number in one] * batch for one in given]
    masks = [_EmptyMask(kv_layout, q_layout, _limit(kv_layout, one, most_own, rule), query) for one in of_heads]
    video = TileLayout(kv_layout.segments[:1], kv_layout.tile, kv_layout.num_levels)
    workspace = workspace_bytes(query.device, CPU_WORKSPACE_BYTES)
    for some in _head_groups(batch * heads, video_tiles, kv_layout, query.device):
        given_some = (rows[some], key[some], value[some], kv_layout)
        required = None if forced is None else forced[some]
        if rule is None:
            errors = estimated_errors(*given_some, kv_samples=kv_samples, scale=scale, workspace=workspace)
            cuts = [_cut(*errors, required, one[some], most_own) for one in of_heads]
        else:
            masses = estimated_masses(*given_some, kv_samples=kv_samples, scale=scale, workspace=workspace)
            cuts = [choose_levels(masses, key[some], rule, video, required)] * len(of_heads)
        for mask, cut in zip(masks, cuts, strict=True):
            mask.fill(some, cut)
    return [mask.finish(batch, heads) for mask in masks]


def _limit(layout: TileLayout, budgets: Sequence[int], most_own: int, rule: LevelRule | None) -> int:
    """Most video tiles of a row."""
    if rule is None:
        return max(most_own, *budgets)
    blocks = layout.segment_tiles(rule.top)[0]
    return min(blocks << rule.top, rule.max_tiles(blocks) + (most_own << rule.top))


class _EmptyMask:
    """A mask that keeps everything, whose video rows are filled in, some heads at a time."""

    def __init__(self, kv_layout: TileLayout, q_layout: TileLayout, limit: int, like: torch.Tensor) -> None:
        self._kv_layout, self._q_layout = kv_layout, q_layout
        self._video_tiles, text = q_layout.segment_tiles(0)[0], sum(kv_layout.segment_tiles(0)[1:])
        whole = kv_layout.num_tiles if q_layout.num_tiles > self._video_tiles else 0
        self._table = KeepTable(kv_layout, max(limit + text, whole), like.device)
        self._indices, self._counts = self._table.everything(like.shape[0] * like.shape[1], q_layout.num_tiles)

    def fill(self, some: slice, cut: list[torch.Tensor]) -> None:
        """Set what some heads keep."""
        listed = self._table.listed(cut)
        self._indices[some, : self._video_tiles], self._counts[some, : self._video_tiles] = listed

    def finish(self, *shape: int) -> BlockMask:
        """The mask, of heads in this shape."""
        indices, counts = (x.unflatten(0, shape) for x in (self._indices, self._counts))
        return BlockMask(indices, counts, self._q_layout, self._kv_layout)


def sampled_rows(query: torch.Tensor, layout: TileLayout, samples: int) -> torch.Tensor:
    """Rows of each video tile, `[B * H, t, samples, D]`."""
    picked = stratified_rows(TileLayout(layout.segments[:1], layout.tile), samples, query.device)
    rows: torch.Tensor = query.index_select(2, picked).flatten(0, 1).unflatten(1, (-1, samples))
    return rows


def _head_groups(heads: int, tiles: int, layout: TileLayout, device: torch.device) -> Iterator[slice]:
    """Slices of heads whose errors are held at once."""
    nodes = sum(layout.segment_tiles(level)[0] for level in range(layout.num_levels))
    step = max(1, workspace_bytes(device, CPU_TABLE_BYTES) // (tiles * nodes * 8))
    for first in range(0, heads, step):
        yield slice(first, min(first + step, heads))


def _cut(
    use: list[torch.Tensor],
    drop: list[torch.Tensor],
    forced: torch.Tensor | None,
    budget: Sequence[int],
    most_own: int,
) -> list[torch.Tensor]:
    """The nodes to use, per level bool `[G, t, n]`; `budget` per head."""
    shape, limit = use[0].shape, max(most_own, *budget)
    # Written number by number: a list would be copied to the device.
    runs = [torch.full((len(list(run)), shape[1]), number, device=use[0].device) for number, run in groupby(budget)]
    budgets = torch.cat(runs)
    if forced is not None:
        budgets = torch.maximum(budgets, forced.sum(2))
        for level in range(len(use)):
            if level > 0:
                forced = F.pad(forced, (0, forced.shape[2] % 2)).unflatten(2, (-1, 2)).any(3)
                use[level].masked_fill_(forced, INF)
            drop[level].masked_fill_(forced, INF)
    flat_use, flat_drop = ([level.flatten(0, 1) for level in part] for part in (use, drop))
    # Tables of as many counts as nodes have leaves are as large as the leaves, at every level.
    step = max(1, workspace_bytes(use[0].device, CPU_TABLE_BYTES) // (shape[2] * (1 + shape[2].bit_length()) * 8))
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
