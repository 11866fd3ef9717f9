"""Adaptive selection: estimate the softmax mass of every tile pair from tile means, keep the heaviest per row.

The estimate is the pooled score of Video-BLADE's ASA and SpargeAttn (mean query against mean key) with a proper
softmax over key tiles, weighted by their token counts; the rule per row is top-p with a floor and a cap.
"""

from __future__ import annotations

import math

import torch

from fastdit_kernels import BlockMask, TileLayout, pad_to_tiles


def tile_means(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """Mean token of each tile, in fp32.

    Args:
        x: `[B, H, S, D]` in tile order.
        layout: One level of tiles.

    Returns:
        `[B, H, num_tiles, D]`; padding does not count.
    """
    sums: torch.Tensor = pad_to_tiles(x, layout).unflatten(2, (-1, layout.tile)).sum(3, dtype=torch.float32)
    return sums / layout.tile_rows(x.device).view(1, 1, -1, 1)


def tile_mass(query: torch.Tensor, key: torch.Tensor, q_layout: TileLayout, kv_layout: TileLayout) -> torch.Tensor:
    """Estimated softmax mass of each key tile for each query tile.

    `softmax_j(scale q_i . k_j + ln n_j)` with tile means `q_i`, `k_j` and `n_j` tokens in key tile `j`.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order.
        q_layout: Query tiles.
        kv_layout: Key tiles, one level.

    Returns:
        fp32 `[B, H, NQ, NK]`; rows sum to one.
    """
    scores = tile_means(query, q_layout) @ tile_means(key, kv_layout).mT / math.sqrt(query.shape[-1])
    return (scores + kv_layout.tile_rows(key.device).float().log()).softmax(-1)


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
        A mask whose rows list the forced tiles first, then by falling mass.
    """
    mass = tile_mass(query, key, q_layout, kv_layout)
    forced = own_tiles(q_layout, kv_layout, query.device)
    # Masses lie in [0, 1], so adding 2 lists the forced tiles before all others.
    ranked = torch.sort(mass + 2.0 * forced, dim=-1, descending=True).indices
    if top_p is None:
        counts = torch.full(mass.shape[:-1], max_tiles, device=mass.device)
    else:
        ranked_mass = mass.gather(-1, ranked)
        before = ranked_mass.cumsum(-1) - ranked_mass
        counts = (before < top_p).sum(-1).clamp(min_tiles, max_tiles)
    counts = torch.maximum(counts, forced.sum(-1))
    return BlockMask(ranked.to(torch.int32), counts.to(torch.int32), q_layout, kv_layout)
