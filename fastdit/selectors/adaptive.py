"""Adaptive selection: estimate the softmax mass of every tile pair from tile means, keep the heaviest per row.

The estimate is the pooled score of Video-BLADE's ASA and SpargeAttn (mean query against mean key) with a proper
softmax over key tiles, weighted by their token counts; the rule per row is top-p with a floor and a cap.
"""

from __future__ import annotations

import torch

from fastdit.selectors.own_tiles import own_tiles
from fastdit_kernels import BlockMask, TileLayout, select_tiles, tile_scores


def select(
    query: torch.Tensor,
    key: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
) -> BlockMask:
    """Build the mask of one layer.

    Args:
        query: `[B, H, S, D]` in tile order, after norms and RoPE.
        key: `[B, H, S, D]`, likewise.
        q_layout: Query tiles.
        kv_layout: Key tiles over the same segments, one level.
        top_p: Share of the estimated mass to keep per row; `None` keeps `max_tiles` in every row.
        min_tiles: Least tiles per row.
        max_tiles: Most tiles per row, unless more are forced.

    Returns:
        A mask whose rows list tiles in ascending order.
    """
    return select_tiles(
        tile_scores(query, key, q_layout, kv_layout),
        q_layout,
        kv_layout,
        top_p=top_p,
        min_tiles=min_tiles,
        max_tiles=max_tiles,
        forced=own_tiles(q_layout, kv_layout, query.device),
    )
