"""Covers of the keys by tiles of several pooling levels: heavy tiles fine, everything else by its means.

Like the global tokens of Video-BLADE (arXiv 2508.10774), pooled tiles stand for all that is not kept; but here no key
is counted twice. The tiles of levels 0 to `L` form a forest with a root for every `2**L` level-0 tiles. A cover starts
with the roots and splits the heaviest node, time and again; a split replaces a node by its two halves. A node is never
heavier than its parent, so the nodes to split are the first ones of a ranking and need no loop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.block_mask import LEVEL_SHIFT


def refine_cover(
    mass: torch.Tensor,
    level: int,
    *,
    max_tiles: int,
    min_tiles: int = 0,
    wanted: torch.Tensor | None = None,
    forced: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Split the heaviest nodes of each row until the budget is spent, or enough mass lies on level 0.

    Of equally heavy nodes the coarser one is split first. Every level-0 tile is covered exactly once.

    Args:
        mass: Share of the softmax mass of each level-0 tile, `[..., n]`.
        level: Coarsest level `L`, at least 1.
        max_tiles: Most tiles per row, unless the roots and forced tiles alone need more.
        min_tiles: Least tiles per row, if the row has so many.
        wanted: Mass that shall lie on level 0, `[..., 1]`; `None` spends `max_tiles`.
        forced: bool `[..., n]`: tiles that stay at level 0.

    Returns:
        Per level, from 0 on, bool `[..., ceil(n / 2**l)]`: the tiles of the cover.
    """
    tiles = mass.shape[-1]
    nodes, weights = [], mass
    for _ in range(level):
        weights = _pairs(weights, 0.0).sum(-1)
        if forced is not None:
            forced = _pairs(forced, False).any(-1)
            weights = weights.masked_fill(forced, torch.inf)
        nodes.append(weights)
    sizes = [node.shape[-1] for node in nodes[::-1]]
    # Coarse levels first, so that the stable sort puts parents before children of the same mass.
    ranked = torch.sort(torch.cat(nodes[::-1], -1), dim=-1, descending=True, stable=True)
    count = sizes[0] + _tiles_added(sizes, tiles, mass.device)[ranked.indices].cumsum(-1)
    split = count <= max_tiles
    if wanted is not None:
        # Tiles reach level 0 when their level-1 parent is split.
        gained = F.pad(_pairs(mass, 0.0).sum(-1), (sum(sizes[:-1]), 0)).gather(-1, ranked.indices)
        split &= (gained.cumsum(-1) - gained < wanted) | (count <= min_tiles)
    split |= ranked.values == torch.inf
    parts = torch.zeros_like(split).scatter_(-1, ranked.indices, split).split(sizes, -1)
    cover = [~parts[0]]
    for place, part in enumerate(parts):
        below = parts[place + 1] if place + 1 < level else torch.zeros_like(mass, dtype=torch.bool)
        cover.append(part.repeat_interleave(2, -1)[..., : below.shape[-1]] & ~below)
    return cover[::-1]


def cover_mask(
    cover: list[torch.Tensor], q_layout: TileLayout, kv_layout: TileLayout, max_tiles: int | None = None
) -> BlockMask:
    """The mask of a cover of the first segment (the video); of the others (text) all level-0 tiles are kept.

    Args:
        cover: See `refine_cover`, `[B, H, NQ, n_l]` for each level.
        q_layout: Query tiles.
        kv_layout: Key tiles with the levels of the cover.
        max_tiles: No row has more tiles, text included; `None` if that is not known.
    """
    device = cover[0].device
    tiles = torch.arange(kv_layout.total_tiles, device=device)
    packed = (tiles + (kv_layout.tile_levels(device) << LEVEL_SHIFT)).to(torch.int32)
    starts = [kv_layout.level_offset(level) for level in range(len(cover))]
    entries = [packed[start : start + level.shape[-1]] for start, level in zip(starts, cover, strict=True)]
    text = packed[cover[0].shape[-1] : kv_layout.num_tiles]
    keep = torch.cat([*cover, cover[0].new_ones((*cover[0].shape[:-1], len(text)))], -1)
    # No cover has more tiles than level 0. What is not kept goes to one extra slot, which is cut off.
    width = kv_layout.num_tiles if max_tiles is None else min(max_tiles, kv_layout.num_tiles)
    slots = torch.where(keep, keep.cumsum(-1) - 1, width)
    indices = torch.zeros((*keep.shape[:-1], width + 1), dtype=torch.int32, device=device)
    indices.scatter_(-1, slots, torch.cat([*entries, text]).expand_as(slots))
    return BlockMask(indices[..., :-1].contiguous(), keep.sum(-1, dtype=torch.int32), q_layout, kv_layout)


def _tiles_added(sizes: list[int], tiles: int, device: torch.device) -> torch.Tensor:
    """Tiles that a split adds, by node from the roots on: one, or none where an odd last node has a single child."""
    added = torch.ones(sum(sizes), dtype=torch.int64, device=device)
    last = -1
    for size, children in zip(sizes, [*sizes[1:], tiles], strict=True):
        last += size
        added[last] -= children % 2
    return added


def _pairs(x: torch.Tensor, filler: float | bool) -> torch.Tensor:
    """Neighbours two by two, `[..., ceil(n / 2), 2]`."""
    paired: torch.Tensor = F.pad(x, (0, x.shape[-1] % 2), value=filler).unflatten(-1, (-1, 2))
    return paired
