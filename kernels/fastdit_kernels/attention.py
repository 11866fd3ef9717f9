"""The public function: check, choose an implementation, run. No mathematics here."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch

from fastdit_kernels import ops
from fastdit_kernels.block_mask import BlockMask
from fastdit_kernels.dispatch import resolve
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.first_order import add_first_order
from fastdit_kernels.pooling import pool_key_value
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiled_tokens import TiledTokens
from fastdit_kernels.tiles import pool_pyramid, unpad_from_tiles


@overload
def block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    first_order_rows: int = 0,
    return_lse: Literal[False] = False,
    implementation: str = "auto",
) -> torch.Tensor: ...


@overload
def block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    first_order_rows: int = 0,
    return_lse: Literal[True],
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


def block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    first_order_rows: int = 0,
    return_lse: bool = False,
    implementation: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`softmax(scale q k^T + ln n) v` over the key tiles that `mask` lists for each query tile.

    A level-`l` tile stands for runs of `2**l` tokens by their mean key and value, `n` tokens each. Tokens must be in
    tile order; the caller reorders them. Softmax is in fp32 (fp64 for fp64 input).

    Args:
        query: `[B, H, Sq, D]`, any strides.
        key: `[B, H, Skv, D]`, any strides.
        value: `[B, H, Skv, D]`, any strides.
        mask: Lists for every (batch, head, query tile); its batch and head sizes may be 1.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        first_order_rows: Let pooled tiles follow the query to first order (`first_order`), by their mass in so many
            rows of each query tile; 0 leaves them at their mean values.
        return_lse: Also return the log-sum-exp (natural log) of the scores.
        implementation: `"auto"`, `"triton"`, `"flex"`, `"torch"` or `"reference"`. A named one runs or raises.

    Returns:
        Output `[B, H, Sq, D]` in the dtype of `query`, and with `return_lse` the LSE `[B, H, Sq]` in fp32. A query
        tile without entries gives 0 and -inf.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
        KernelUnavailableError: The named implementation cannot run here.
    """
    out, lse = attend_tiles(
        TiledTokens(query),
        TiledTokens(key),
        TiledTokens(value),
        mask,
        scale=scale,
        first_order_rows=first_order_rows,
        implementation=implementation,
    )
    out = unpad_from_tiles(out, mask.q_layout)
    return (out, unpad_from_tiles(lse, mask.q_layout)) if return_lse else out


def attend_tiles(
    query: TiledTokens,
    key: TiledTokens,
    value: TiledTokens,
    mask: BlockMask,
    *,
    scale: float | None = None,
    first_order_rows: int = 0,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`block_sparse_attention` that leaves its result on tile boundaries, and copies no tokens that lie there.

    Args:
        query: `[B, H, Sq, D]`.
        key: `[B, H, Skv, D]`.
        value: `[B, H, Skv, D]`.
        mask: As in `block_sparse_attention`.
        scale: Likewise.
        first_order_rows: Likewise.
        implementation: Likewise.

    Returns:
        Output `[B, H, NQ * q_tile, D]` and LSE `[B, H, NQ * q_tile]`; `unpad_from_tiles` drops the padding rows, which
        hold anything.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
        KernelUnavailableError: The named implementation cannot run here.
    """
    if not torch.compiler.is_compiling():
        _check(query.tokens, key.tokens, value.tokens, mask)
    chosen = resolve(implementation, query.tokens, (mask.q_tile, mask.kv_tile))
    keys, values = _key_buffers(key, value, mask.kv_layout, chosen)
    buffer = query.padded(mask.q_layout)
    scale = 1 / math.sqrt(query.tokens.shape[-1]) if scale is None else scale
    attended: tuple[torch.Tensor, torch.Tensor] = ops.attend_buffers(
        buffer,
        keys,
        values,
        mask.indices,
        mask.counts,
        list(mask.kv_layout.segments),
        mask.kv_layout.num_levels,
        mask.q_tile,
        mask.kv_tile,
        scale,
        chosen,
    )
    if first_order_rows:
        add_first_order(*attended, buffer, keys, values, mask, rows=first_order_rows, scale=scale)
    return attended


def _key_buffers(
    key: TiledTokens, value: TiledTokens, layout: TileLayout, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all levels; beside a GPU kernel by the pooling kernel, which reads every token once."""
    if layout.num_levels == 1:
        return key.padded(layout), value.padded(layout)
    if implementation in ("torch", "reference"):
        return pool_pyramid(key.tokens, layout), pool_pyramid(value.tokens, layout)
    return pool_key_value(key.tokens, value.tokens, layout)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask) -> None:
    batch, heads, dim = query.shape[0], query.shape[1], query.shape[-1]
    expected = {
        "query": (query, (batch, heads, mask.q_layout.length, dim)),
        "key": (key, (batch, heads, mask.kv_layout.length, dim)),
        "value": (value, (batch, heads, mask.kv_layout.length, dim)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InvalidInputError(f"{name} is {tuple(tensor.shape)}: accepted with this mask is {shape}")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise InvalidInputError(
                f"{name} is {tensor.dtype} on {tensor.device}, query is {query.dtype} on {query.device}: "
                "all three must agree"
            )
    if mask.indices.device != query.device:
        raise InvalidInputError(f"the mask is on {mask.indices.device}, query on {query.device}: move it with mask.to")
    for axis, name in enumerate(("batch", "head")):
        if mask.indices.shape[axis] not in (1, query.shape[axis]):
            raise InvalidInputError(
                f"the mask has {name} size {mask.indices.shape[axis]}: accepted are 1 and {query.shape[axis]}"
            )
