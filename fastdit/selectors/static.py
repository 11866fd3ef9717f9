"""Static selection: the mask follows from the places of the tokens, not from their values."""

from __future__ import annotations

import torch
from torch.nn import functional

from fastdit.grid import VideoGrid
from fastdit.orders import token_order
from fastdit.selectors.own_tiles import own_tiles
from fastdit.selectors.static_patterns import Pattern
from fastdit_kernels import BlockMask, TileLayout

# Cells (query tiles x video tokens) worked on at once; a pattern needs a few times four bytes for each.
CHUNK_CELLS = 4 << 20


def select(
    pattern: Pattern,
    grid: VideoGrid,
    order: str,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    device: torch.device,
) -> BlockMask:
    """Round a pattern up to tiles: a key tile is kept if any pair (query token, key token) of the two tiles is in it.

    Exact, and without a table of token pairs: for each query tile the pattern tells which cells of the video its
    tokens reach, and a key tile is kept if one of its cells is among them. Own tiles, text keys and kept frames are
    always kept; text queries and those of dense frames keep everything.

    Args:
        pattern: What to keep.
        grid: Geometry.
        order: Token order that the tiles are cut from.
        q_layout: Query tiles over `grid.query_segments`.
        kv_layout: Key tiles over `grid.key_segments`, one level.
        device: Where to build it.

    Returns:
        A mask of batch and head size 1 whose rows list tiles in ascending order.
    """
    tokens = token_order(grid, order).to(device) - grid.video_start
    q_tokens, k_tokens = tokens[: q_layout.segments[0]], tokens[: kv_layout.segments[0]]
    q_tiles, k_tiles = q_layout.segment_tiles(0)[0], kv_layout.segment_tiles(0)[0]
    padding = k_tiles * kv_layout.tile - len(k_tokens)
    keep = own_tiles(q_layout, kv_layout, device)
    step = max(1, CHUNK_CELLS // grid.video_length)
    for first in range(0, q_tiles, step):
        last = min(first + step, q_tiles)
        members = q_tokens[first * q_layout.tile : last * q_layout.tile]
        tile = torch.arange(len(members), device=device) // q_layout.tile
        cells = torch.zeros(last - first, grid.video_length, dtype=torch.bool, device=device)
        cells[tile, members] = True
        reached = pattern.reach(cells.unflatten(1, (grid.frames, grid.height, grid.width))).flatten(1)
        rows = functional.pad(reached.index_select(1, k_tokens), (0, padding))
        keep[first:last, :k_tiles] |= rows.unflatten(1, (k_tiles, -1)).any(-1)
    return BlockMask.from_dense(
        keep[None, None],
        q_len=q_layout.segments,
        kv_len=kv_layout.segments,
        q_tile=q_layout.tile,
        kv_tile=kv_layout.tile,
    )
