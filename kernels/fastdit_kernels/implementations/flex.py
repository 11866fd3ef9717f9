"""Block-sparse attention through `torch.nn.attention.flex_attention`: a cross-check, and a fallback on CUDA.

On CUDA the fused kernel is compiled. On a CPU the compiled kernel gives no log-sum-exp (torch 2.13), so the eager one
runs, which holds all scores in memory: it takes small sizes only.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from fastdit_kernels.errors import KernelUnavailableError
from fastdit_kernels.tiles import wide_dtype

# Scores the eager form may hold: 256 MiB in fp32, of which it needs about four copies.
MAX_EAGER_SCORES = 1 << 26
# Largest tile of the compiled kernel; a tile of ours is one or several of those.
MAX_BLOCK_M, MAX_BLOCK_N, MIN_BLOCK = 128, 64, 16


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_members: torch.Tensor | None,
    indices: torch.Tensor,
    counts: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same contract as the reference, except that the output has the dtype of `query`.

    `row_members=None` says that every row is one real token, which saves the bias and the padding mask.

    Raises:
        KernelUnavailableError: More scores than the eager form may hold, or tiles that the compiled kernel lacks.
    """
    arguments = (row_members, indices, counts, q_tile, kv_tile, key.shape[2])
    score_mod = None if row_members is None else _add_log_members(_log_members(row_members, query.dtype))
    aux_request = AuxRequest(lse=True)
    if query.device.type == "cpu":
        _check_eager(query, key)
        block_mask = to_flex_mask(*arguments, with_table=True)
        with warnings.catch_warnings():
            # The warning asks for torch.compile, which cannot return the LSE on a CPU.
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            out, aux = flex_attention(
                query, key, value, score_mod=score_mod, block_mask=block_mask, scale=scale, return_aux=aux_request
            )
        assert aux.lse is not None, "requested above"
        return out, aux.lse
    options = _kernel_options(query, q_tile, kv_tile)
    out, aux = _compiled()(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=to_flex_mask(*arguments),
        scale=scale,
        kernel_options=options,
        return_aux=aux_request,
    )
    return out, aux.lse


def to_flex_mask(
    row_members: torch.Tensor | None,
    indices: torch.Tensor,
    counts: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    kv_rows: int,
    with_table: bool = False,
) -> BlockMask:
    """Our lists as the `BlockMask` of flex_attention, over the same buffer of all levels.

    Tiles with padding rows go into its list of partial blocks, where `mask_mod` hides those rows; the others into
    the list of full blocks, which is never masked.

    Args:
        row_members: Tokens behind each key row, `[T * kv_tile]`, 0 for padding; `None` if there is no padding.
        indices: Tile of each entry, `[B, H, NQ, K]`.
        counts: Entries of each row, `[B, H, NQ]`.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        kv_rows: `T * kv_tile`.
        with_table: Let `mask_mod` look up the kept tiles too; the eager form reads nothing but `mask_mod`.
    """
    tiles, device = kv_rows // kv_tile, indices.device
    slots = torch.arange(indices.shape[-1], device=device)
    listed = slots < counts.unsqueeze(-1)
    # Unlisted slots may hold anything, so they are sent to a column that is cut off.
    target = torch.where(listed, indices, tiles).long()
    keep = torch.zeros((*counts.shape, tiles + 1), dtype=torch.bool, device=device).scatter_(-1, target, True)
    keep = keep[..., :-1].contiguous()
    real = torch.ones(kv_rows, dtype=torch.bool, device=device) if row_members is None else row_members > 0
    full = real.view(tiles, kv_tile).all(-1)
    partial_counts, partial_indices = _lists(keep & ~full)
    full_counts, full_indices = _lists(keep & full)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return real[k] & keep[b, h, q // q_tile, k // kv_tile] if with_table else real[k]

    return BlockMask.from_kv_blocks(
        partial_counts,
        partial_indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=(q_tile, kv_tile),
        mask_mod=mask_mod,
        seq_lengths=(counts.shape[-1] * q_tile, kv_rows),
        compute_q_blocks=False,
    )


def _lists(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and ascending tile numbers of a boolean table; flex_attention wants one slot for every tile."""
    order = torch.sort(keep.to(torch.int8), dim=-1, descending=True, stable=True).indices
    return keep.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _log_members(row_members: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Padding rows are hidden by mask_mod; ln 1 there keeps infinities out of the scores.
    return row_members.clamp_min(1).to(wide_dtype(dtype)).log()


def _add_log_members(bias: torch.Tensor) -> Callable[..., torch.Tensor]:
    def score_mod(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor:
        return score + bias[k]

    return score_mod


def _check_eager(query: torch.Tensor, key: torch.Tensor) -> None:
    scores = math.prod(query.shape[:3]) * key.shape[2]
    if scores > MAX_EAGER_SCORES:
        raise KernelUnavailableError(
            f"implementation='flex' on a CPU holds all {scores:,} scores in memory, accepted are {MAX_EAGER_SCORES:,}: "
            "its compiled form gives no log-sum-exp there. Use 'auto' or 'torch'."
        )


def _kernel_options(query: torch.Tensor, q_tile: int, kv_tile: int) -> dict[str, int]:
    # The compiled kernel works in power-of-two blocks that must divide the tiles of the mask.
    block_m, block_n = math.gcd(q_tile, MAX_BLOCK_M), math.gcd(kv_tile, MAX_BLOCK_N)
    if min(block_m, block_n) < MIN_BLOCK or query.dtype == torch.float64:
        raise KernelUnavailableError(
            f"implementation='flex' on {query.device.type} got tiles {q_tile} x {kv_tile} in {query.dtype}: accepted "
            f"are multiples of {MIN_BLOCK} and float32, bfloat16 or float16. Use 'torch'."
        )
    return {"BLOCK_M": block_m, "BLOCK_N": block_n}


@functools.cache
def _compiled() -> Callable[..., Any]:
    # fullgraph: falling back to the eager form would silently hold all scores in memory.
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    return compiled
