"""Pyramid selection for very long sequences: cuts found from the top, without a table of all tile pairs."""

from __future__ import annotations

import math

import torch

from fastdit.selectors.pyramid import KeepTable, held_out_samples, sampled_rows
from fastdit.selectors.pyramid_keys import pyramid_keys
from fastdit.selectors.pyramid_search import OwnTiles, search_cut
from fastdit.selectors.sampled_error import sample_exactly
from fastdit_kernels import BlockMask, TileLayout

# Query tiles whose held-out rows are compared with dense attention.
MEASURED_TILES = 16


@torch.no_grad()
def select_top_down(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    budget: int,
    beam: int,
    q_samples: int = 4,
    own_heads: torch.Tensor | None = None,
    scale: float | None = None,
    measure: bool = True,
) -> tuple[BlockMask, torch.Tensor | None]:
    """Build the mask of one layer; as `pyramid.select`, but only the children of promising tiles are looked at.

    Args:
        query: `[B, H, S, D]` in tile order, after norms and RoPE.
        key: `[B, H, S, D]` in its own tile order.
        value: `[B, H, S, D]` in the order of `key`.
        q_layout: Query tiles.
        kv_layout: Key tiles with all levels that may be used; the more, the fewer tiles to begin with.
        budget: Most tiles per row, unless text and own tiles alone are more.
        beam: Tiles of each level whose children are looked at, per query tile.
        q_samples: Rows sampled of each query tile.
        own_heads: bool `[H]`: heads that keep the key tiles of the query's own place at level 0; `None` for none.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        measure: Also return the error.

    Returns:
        The mask, and with `measure` its relative output error on held-out rows of some query tiles, `[B, H]`.
    """
    batch, heads, _, dim = query.shape
    scale = 1 / math.sqrt(dim) if scale is None else scale
    video, text_tiles = q_layout.segments[0], sum(kv_layout.segment_tiles(0)[1:])
    tiles, budget = q_layout.segment_tiles(0)[0], max(1, budget - text_tiles)
    own, limit = None, budget
    if own_heads is not None:
        first = torch.arange(tiles, device=query.device) * q_layout.tile
        last = (first + q_layout.tile).clamp(max=video) - 1
        own = OwnTiles(first // kv_layout.tile, last // kv_layout.tile, own_heads)
        # A run of tokens touches at most this many key tiles.
        most = (q_layout.tile - 2) // kv_layout.tile + 2
        limit, beam = max(budget, most), max(beam, most)
    width = max(limit + text_tiles, kv_layout.num_tiles if q_layout.num_tiles > tiles else 0)
    rows = sampled_rows(query, q_layout, q_samples).unflatten(0, (batch, heads))
    keep = KeepTable(kv_layout, width, query.device)
    indices, counts = keep.everything(batch * heads, q_layout.num_tiles)
    indices, counts = indices.unflatten(0, (batch, heads)), counts.unflatten(0, (batch, heads))
    for head in range(heads):
        keys = pyramid_keys(key[:, head], value[:, head], kv_layout, None)
        mine = None if own is None else OwnTiles(own.first, own.last, own.heads[head].expand(batch))
        for some, found in search_cut(rows[:, head], keys, scale, budget, beam, mine):
            indices[:, head, some], counts[:, head, some] = keep.listed_tiles(found)
    mask = BlockMask(indices, counts, q_layout, kv_layout)
    if not measure:
        return mask, None
    samples = held_out_samples(q_samples)
    held_out = sample_exactly(query, key, value, q_layout, tiles=MEASURED_TILES, rows=samples, scale=scale)
    return mask, held_out.error(key, value, mask)
