"""Adaptive selection: estimate the softmax mass of every tile pair, keep the heaviest per row.

The estimate is a proper softmax over representatives of the key tiles, weighted by their token counts: tile means
(SpargeAttn), sampled tokens (Video-BLADE's ASA) or antidiagonals (XAttention); or it is exact for a few query rows,
which no peak among the keys escapes. The rule per row is top-p with a floor
and a cap. A gate after SpargeAttn keeps tiles that no representative can stand for. What is not kept is dropped, or
covered by pooled tiles (`pooled_cover`).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from fastdit.selectors.own_tiles import most_own_tiles, own_tiles
from fastdit.selectors.pooled_cover import cover_mask, refine_cover
from fastdit_kernels import (
    BlockMask,
    TileLayout,
    sampled_mass,
    select_tiles,
    stratified_rows,
    tile_means,
    tile_scores,
)

EstimatorName = Literal["mean", "sampled", "antidiagonal", "rows"]
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
    pooled_level: int | None = None,
    shares_order: torch.Tensor | None = None,
    runs: torch.Tensor | None = None,
) -> BlockMask:
    """Build the mask of one layer, or of some of its query tiles.

    Args:
        query: `[B, H, S, D]` in tile order, after norms and RoPE.
        key: `[B, H, S, D]`, likewise.
        q_layout: Query tiles.
        kv_layout: Key tiles over the same segments, one level.
        top_p: Share of the estimated mass to keep per row; `None` keeps `max_tiles` in every row.
        min_tiles: Least tiles per row.
        max_tiles: Most tiles per row, unless more are forced.
        estimator: How the mass is estimated, see `fastdit_kernels.tile_scores`, and `sampled_mass` for `"rows"`.
        samples: Tokens of each tile that `"sampled"` looks at; of each query tile for `"rows"`.
        stride: Run length of `"antidiagonal"`.
        min_similarity: Rows of query tiles and columns of key tiles with less `self_similarity` are kept whole, past
            `max_tiles`; such key tiles take no part in the estimate. `None` has no such gate.
        pooled_level: Coarsest level of the tiles that cover what is not kept; `None` drops it. A pooled tile counts
            as one. The own tile is then kept only by its mass: it cannot be lost.
        shares_order: bool `[H]`: heads whose keys are in the order of the queries; of others the own tile is not
            forced. `None` if all are.
        runs: Places of the first query of each tile of `q_layout`, where these are not all tiles; see `own_tiles`.

    Returns:
        A mask whose rows list tiles in ascending order.
    """
    if estimator == "rows":
        picked = stratified_rows(q_layout, samples, query.device)
        scores = sampled_mass(query.index_select(2, picked), key, kv_layout, q_samples=samples)
    else:
        scores = tile_scores(
            query, key, q_layout, kv_layout, estimator=estimator, q_samples=samples, kv_samples=samples, stride=stride
        )
    forced = None if pooled_level is not None else _own_tiles(q_layout, kv_layout, shares_order, runs, query.device)
    most = most_own_tiles(q_layout, kv_layout)
    if min_similarity is not None:
        # How many tiles the gate keeps is known on the device only.
        most = kv_layout.num_tiles
        mixed_q = self_similarity(query, q_layout) < min_similarity
        # Softmax does not see what all keys have in common, so the cosine must not either.
        mixed_k = self_similarity(key - key.mean(2, keepdim=True), kv_layout) < min_similarity
        scores = scores.masked_fill(mixed_k.unsqueeze(-2), 0.0)
        scores = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
        mixed = mixed_q.unsqueeze(-1) | mixed_k.unsqueeze(-2)
        forced = mixed if forced is None else forced | mixed
    if pooled_level is not None:
        return _cover(scores, q_layout, kv_layout, pooled_level, top_p, min_tiles, max_tiles, forced)
    return select_tiles(
        scores,
        q_layout,
        kv_layout,
        top_p=top_p,
        min_tiles=min_tiles,
        max_tiles=max_tiles,
        forced=forced,
        max_forced=most,
    )


def _own_tiles(
    q_layout: TileLayout,
    kv_layout: TileLayout,
    shares_order: torch.Tensor | None,
    runs: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """Tiles kept in any case, bool `[NQ, NK]` or `[H, NQ, NK]`; the own tile only where keys have the same order."""
    own = own_tiles(q_layout, kv_layout, device, runs)
    if shares_order is None:
        return own
    text = own.clone()
    text[: q_layout.segment_tiles(0)[0], : kv_layout.segment_tiles(0)[0]] = False
    return torch.where(shares_order.view(-1, 1, 1), own, text)


def _cover(
    scores: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    level: int,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
    forced: torch.Tensor | None,
) -> BlockMask:
    """Heavy video tiles at level 0, the others pooled; text is kept and counts, text queries see all at level 0."""
    video, video_rows = kv_layout.segment_tiles(0)[0], q_layout.segment_tiles(0)[0]
    mass, text = scores.split((video, scores.shape[-1] - video), -1)
    text_rows = torch.arange(q_layout.num_tiles, device=scores.device).view(-1, 1) >= video_rows
    whole = text_rows.expand(-1, video) if forced is None else forced[..., :video] | text_rows
    cover = refine_cover(
        mass,
        level,
        max_tiles=max_tiles - text.shape[-1],
        min_tiles=min_tiles - text.shape[-1],
        wanted=None if top_p is None else top_p - text.sum(-1, keepdim=True),
        forced=whole.expand(mass.shape) if forced is not None or video_rows < q_layout.num_tiles else None,
    )
    # Forced tiles may take a slot each; otherwise there are no more than the budget, or the roots alone.
    known = forced is None and video_rows == q_layout.num_tiles
    most = max(max_tiles, cover[-1].shape[-1] + text.shape[-1]) if known else kv_layout.num_tiles
    return cover_mask(cover, q_layout, TileLayout(kv_layout.segments, kv_layout.tile, level + 1), most)
