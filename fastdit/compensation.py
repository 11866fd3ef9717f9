"""Attention over a mask, and its correction for the mass that the mask misses (Re-ttention, arXiv 2505.22918).

A softmax over kept keys inflates their weights, because its denominator misses the others. Re-ttention scales the
output by `rho`, kept mass over full mass, and adds a residual; it takes both from an earlier dense step. Here nothing
is kept from step to step: `rho` comes from the exact log-sum-exp of a few query rows of the call itself, and pooled
tiles stand for the residual.
"""

from __future__ import annotations

import torch

from fastdit_kernels import BlockMask, TileLayout, merge_attention, stratified_rows, unpad_from_tiles
from fastdit_kernels.attention import attend_tiles
from fastdit_kernels.block_mask import LEVEL_SHIFT
from fastdit_kernels.tiled_tokens import TiledTokens


def corrected_attention(
    query: torch.Tensor | TiledTokens,
    key: torch.Tensor | TiledTokens,
    value: torch.Tensor | TiledTokens,
    mask: BlockMask,
    *,
    rows: int = 4,
    first_order_rows: int = 0,
    implementation: str = "auto",
) -> torch.Tensor:
    """`rho O_kept + (1 - rho) O_pooled`: level-0 tiles and pooled tiles, weighed by their true mass.

    `rows` query rows of each tile give its kept mass `m = mean e^(lse_kept - lse)` and the pooled estimate of the rest
    `u = mean e^(lse_pooled - lse)`, with the exact `lse` over all keys. The pooled tiles of a query tile are then
    multiplied by `g = (1 - m) / u`, so that each row has `rho = e^lse_kept / (e^lse_kept + g e^lse_pooled)`. Means of
    keys understate the mass of unlike keys, which `g` mends. Without pooled tiles `rho = m` for all rows of a tile,
    and the missed keys add nothing, as if their values cancelled out.

    Args:
        query: `[B, H, S, D]` in tile order.
        key: `[B, H, S, D]` in the order that the mask counts in.
        value: Likewise.
        mask: What is kept.
        rows: Query rows of each tile that are compared with all keys; `rows / q_tile` of the cost of dense attention.
        first_order_rows: Of pooled tiles, see `block_sparse_attention`.
        implementation: Kernel, see `block_sparse_attention`.

    Returns:
        `[B, H, S, D]`; that of `mask` itself where it keeps everything at level 0.
    """
    q, k, v = (x if isinstance(x, TiledTokens) else TiledTokens(x) for x in (query, key, value))

    def attend(part: BlockMask, query: TiledTokens = q) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attend_tiles(query, k, v, part, first_order_rows=first_order_rows, implementation=implementation)
        return unpad_from_tiles(out, part.q_layout), unpad_from_tiles(lse, part.q_layout)

    fine = (mask.indices >> LEVEL_SHIFT) == 0
    out, lse = attend(_entries(mask, fine))
    picked = stratified_rows(mask.q_layout, rows, q.tokens.device)
    layout = TileLayout(mask.kv_layout.segments, mask.kv_tile)
    all_keys = BlockMask.full(TileLayout((len(picked),), mask.q_tile), layout, picked.device)
    full = attend(all_keys, TiledTokens(q.tokens.index_select(2, picked)))[1]
    # A query tile that sees no key at level 0 has an LSE of -inf and a mass of 0.
    kept = _tile_mean((lse.index_select(2, picked) - full).exp(), rows).clamp(max=1)
    if mask.kv_layout.num_levels == 1:
        return (out * _per_token(kept, mask.q_layout).unsqueeze(-1)).to(out.dtype)
    rest, rest_lse = attend(_entries(mask, ~fine))
    pooled = _tile_mean((rest_lse.index_select(2, picked) - full).exp(), rows)
    tiny = torch.finfo(kept.dtype).tiny
    # Where nothing is pooled the factor is of no account; where all mass is kept it is small, not 0, to have a log.
    factor = torch.where(pooled > 0, (1 - kept).clamp_min(tiny) / pooled.clamp_min(tiny), 1).log()
    return merge_attention(out, lse, rest, rest_lse + _per_token(factor, mask.q_layout))[0]


def _entries(mask: BlockMask, wanted: torch.Tensor) -> BlockMask:
    """The listed entries that are wanted, bool `[B, H, NQ, K]`."""
    wanted = wanted & mask.is_listed
    first = torch.sort(wanted.to(torch.int8), dim=-1, descending=True, stable=True).indices
    indices = mask.indices.gather(-1, first)
    return BlockMask(indices, wanted.sum(-1, dtype=torch.int32), mask.q_layout, mask.kv_layout)


def _tile_mean(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Means over the sampled rows of each query tile, `[B, H, NQ]`."""
    mean: torch.Tensor = x.unflatten(2, (-1, rows)).mean(3)
    return mean


def _per_token(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """What a query tile has, for each of its tokens: `[B, H, S]` from `[B, H, NQ]`."""
    return x.repeat_interleave(layout.tile_rows(x.device), 2, output_size=layout.length)
