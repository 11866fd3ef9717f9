"""Pyramid selection for very long sequences: cuts found from the top, without a table of all tile pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fastdit.selectors.pyramid import KeepTable, held_out_samples, sampled_rows
from fastdit.selectors.pyramid_keys import pyramid_keys
from fastdit.selectors.pyramid_search import OwnTiles, search_cut
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention, stratified_rows

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
    return mask, _measured(query, key, value, mask, held_out_samples(q_samples), scale) if measure else None


def _measured(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, samples: int, scale: float
) -> torch.Tensor:
    """Relative output error against dense attention, mean over some rows, `[B, H]`."""
    layout = TileLayout(mask.q_layout.segments[:1], mask.q_layout.tile)
    count = min(layout.num_tiles, MEASURED_TILES)
    tiles = (2 * torch.arange(count, device=query.device) + 1) * layout.num_tiles // (2 * count)
    picked = stratified_rows(layout, samples, query.device).view(-1, samples)[tiles].flatten()
    rows = query.index_select(2, picked)
    some = BlockMask(
        mask.indices.index_select(2, tiles),
        mask.counts.index_select(2, tiles),
        TileLayout((len(picked),), samples),
        mask.kv_layout,
    )
    # Tiles of so few rows are not what the fast kernels take.
    sparse = block_sparse_attention(rows, key, value, some, scale=scale, implementation="torch").float()
    exact = F.scaled_dot_product_attention(rows, key, value, scale=scale).float()
    tiny = torch.finfo(exact.dtype).tiny
    error: torch.Tensor = (sparse - exact).norm(dim=3) / exact.norm(dim=3).clamp_min(tiny)
    return error.mean(2)
