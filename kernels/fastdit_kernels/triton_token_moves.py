"""Triton kernels of `token_moves`: one read and one write of every row, padding included."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.token_moves import empty_tokens

BLOCK_ELEMENTS = 4096


@triton.jit
def move_kernel(
    tokens,
    buffer,
    order,
    heads,
    dim,
    first_token,
    length,
    first_row,
    padded,
    order_stride_h,
    order_stride_s,
    token_stride_b,
    token_stride_h,
    token_stride_s,
    token_stride_d,
    buffer_stride_b,
    buffer_stride_h,
    buffer_stride_s,
    buffer_stride_d,
    gathers: tl.constexpr,
    block_rows: tl.constexpr,
    block_dim: tl.constexpr,
):
    """Program `(i, b H + h)` moves `block_rows` rows of one segment, into the buffer or back."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.arange(0, block_dim).to(tl.int64)
    place = (first_token + row).to(tl.int64) * order_stride_s + head * order_stride_h
    token = tl.load(order + place, mask=row < length, other=0).to(tl.int64)
    tokens += batch * token_stride_b + head * token_stride_h
    buffer += batch * buffer_stride_b + head * buffer_stride_h
    outside = tokens + token[:, None] * token_stride_s + columns[None, :] * token_stride_d
    inside = buffer + (first_row + row).to(tl.int64)[:, None] * buffer_stride_s + columns[None, :] * buffer_stride_d
    wide = (columns < dim)[None, :]
    real = (row < length)[:, None] & wide
    if gathers:
        tl.store(inside, tl.load(outside, mask=real, other=0.0), mask=(row < padded)[:, None] & wide)
    else:
        tl.store(outside, tl.load(inside, mask=real, other=0.0), mask=real)


def gather_to_tiles(x: torch.Tensor, order: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """See `token_moves.gather_to_tiles`."""
    buffer = x.new_empty((*x.shape[:2], layout.num_tiles * layout.tile, x.shape[3]))
    _move(x, buffer, order, layout, gathers=True)
    return buffer


def scatter_from_tiles(
    buffer: torch.Tensor, order: torch.Tensor, layout: TileLayout, token_major: bool = False
) -> torch.Tensor:
    """See `token_moves.scatter_from_tiles`."""
    x = empty_tokens(buffer, layout.length, token_major)
    _move(x, buffer, order, layout, gathers=False)
    return x


def _move(tokens: torch.Tensor, buffer: torch.Tensor, order: torch.Tensor, layout: TileLayout, gathers: bool) -> None:
    """One launch per segment."""
    batch, heads, _, dim = tokens.shape
    block_dim = max(16, triton.next_power_of_2(dim))
    block_rows = max(1, BLOCK_ELEMENTS // block_dim)
    order_strides = (0 if order.ndim == 1 else order.stride(0), order.stride(-1))
    first_token = first_row = 0
    with torch.cuda.device_of(tokens):
        for length, tiles in zip(layout.segments, layout.segment_tiles(0), strict=True):
            padded = tiles * layout.tile
            if padded * batch * heads > 0:
                move_kernel[(triton.cdiv(padded, block_rows), batch * heads)](
                    tokens, buffer, order, heads, dim, first_token, length, first_row, padded,
                    *order_strides, *tokens.stride(), *buffer.stride(),
                    gathers=gathers, block_rows=block_rows, block_dim=block_dim,
                    num_warps=4, enable_fp_fusion=True,
                )  # fmt: skip
            first_token, first_row = first_token + length, first_row + padded
