"""Adaptive selection: estimate the softmax mass of every tile pair from tile means, keep the heaviest per row.

The estimate is the pooled score of Video-BLADE's ASA and SpargeAttn (mean query against mean key) with a proper
softmax over key tiles, weighted by their token counts; the rule per row is top-p with a floor and a cap.
"""

from __future__ import annotations

import torch

from fastdit_kernels import BlockMask, TileLayout, select_tiles, tile_scores


def own_tiles(q_layout: TileLayout, kv_layout: TileLayout, device: torch.device) -> torch.Tensor:
    """Key tiles that every row must keep: those sharing a token with the query tile, and all of the text.

    Both layouts have the same segments: video, then text if any. Text queries keep everything.

    Returns:
        bool `[NQ, NK]`.
    """
    spans = []
    for layout in (q_layout, kv_layout):
        tile = torch.arange(layout.segment_tiles(0)[0], device=device)
        spans.append((tile * layout.tile, (tile + 1) * layout.tile))
    (q_first, q_end), (k_first, k_end) = spans
    keep = torch.ones(q_layout.num_tiles, kv_layout.num_tiles, dtype=torch.bool, device=device)
    keep[: len(q_first), : len(k_first)] = (q_first[:, None] < k_end) & (k_first < q_end[:, None])
    return keep


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
