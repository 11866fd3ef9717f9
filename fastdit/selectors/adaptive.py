"""Adaptive selection: estimate the softmax mass of every tile pair, keep the heaviest per row.

The estimate is a proper softmax over representatives of the key tiles, weighted by their token counts: tile means
(SpargeAttn), sampled tokens (Video-BLADE's ASA) or antidiagonals (XAttention). The rule per row is top-p with a floor
and a cap. A gate after SpargeAttn keeps tiles that no representative can stand for.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from fastdit.selectors.own_tiles import own_tiles
from fastdit_kernels import BlockMask, TileLayout, select_tiles, tile_means, tile_scores

EstimatorName = Literal["mean", "sampled", "antidiagonal"]
ESTIMATOR_NAMES: tuple[EstimatorName, ...] = get_args(EstimatorName)


def self_similarity(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """Mean cosine of all pairs of tokens of a tile, each token with itself included: `|mean of x / |x||^2`.

    Args:
        x: `[B, H, S, D]` in tile order.
        layout: Tiles, one level.

    Returns:
        `[B, H, num_tiles]`, fp32 or fp64, in [0, 1]: 1 where all tokens point the same way.
    """
    return tile_means(F.normalize(x, dim=-1), layout).square().sum(-1)


def select(
    query: torch.Tensor,
    key: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
    estimator: EstimatorName = "mean",
    samples: int = 4,
    stride: int = 8,
    min_similarity: float | None = None,
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
        estimator: How the mass is estimated, see `fastdit_kernels.tile_scores`.
        samples: Tokens of each tile that `"sampled"` looks at.
        stride: Run length of `"antidiagonal"`.
        min_similarity: Rows of query tiles and columns of key tiles with less `self_similarity` are kept whole, past
            `max_tiles`; such key tiles take no part in the estimate. `None` has no such gate.

    Returns:
        A mask whose rows list tiles in ascending order.
    """
    scores = tile_scores(
        query, key, q_layout, kv_layout, estimator=estimator, q_samples=samples, kv_samples=samples, stride=stride
    )
    forced = own_tiles(q_layout, kv_layout, query.device)
    if min_similarity is not None:
        mixed_q = self_similarity(query, q_layout) < min_similarity
        # Softmax does not see what all keys have in common, so the cosine must not either.
        mixed_k = self_similarity(key - key.mean(2, keepdim=True), kv_layout) < min_similarity
        scores = scores.masked_fill(mixed_k.unsqueeze(-2), 0.0)
        scores = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
        forced = forced | mixed_q.unsqueeze(-1) | mixed_k.unsqueeze(-2)
    return select_tiles(
        scores, q_layout, kv_layout, top_p=top_p, min_tiles=min_tiles, max_tiles=max_tiles, forced=forced
    )
