"""Pyramid selection for very long sequences: cuts found from the top, without a table of all tile pairs."""

from __future__ import annotations

import math

import torch

from fastdit.selectors.own_tiles import OwnTiles
from fastdit.selectors.pyramid import KeepTable, sampled_rows
from fastdit.selectors.pyramid_keys import pyramid_keys
from fastdit.selectors.pyramid_search import search_cut
from fastdit_kernels import BlockMask, TileLayout


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
    own: OwnTiles | None = None,
    scale: float | None = None,
) -> BlockMask:
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
        own: Tiles that are kept at level 0 in any case.
        scale: Factor on the scores, default `1 / sqrt(D)`.
    """
    batch, heads, _, dim = query.shape
    scale = 1 / math.sqrt(dim) if scale is None else scale
    text_tiles = sum(kv_layout.segment_tiles(0)[1:])
    tiles, budget = q_layout.segment_tiles(0)[0], max(1, budget - text_tiles)
    limit = budget
    if own is not None:
        limit, beam = max(budget, own.most), max(beam, own.most)
    width = max(limit + text_tiles, kv_layout.num_tiles if q_layout.num_tiles > tiles else 0)
    rows = sampled_rows(query, q_layout, q_samples).unflatten(0, (batch, heads))
    keep = KeepTable(kv_layout, width, query.device)
    indices, counts = keep.everything(batch * heads, q_layout.num_tiles)
    indices, counts = indices.unflatten(0, (batch, heads)), counts.unflatten(0, (batch, heads))
    for head in range(heads):
        keys = pyramid_keys(key[:, head], value[:, head], kv_layout, None)
        mine = None if own is None else own.of_heads(own.heads[head].expand(batch))
        for some, found in search_cut(rows[:, head], keys, scale, budget, beam, mine):
            indices[:, head, some], counts[:, head, some] = keep.listed_tiles(found)
    return BlockMask(indices, counts, q_layout, kv_layout)
