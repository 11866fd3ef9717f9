"""Triton kernel of `pooling`: one read of every token, all levels written on the way up."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastdit_kernels.tile_layout import TileLayout

# fp32 elements of one strided block of rows: it stays in registers once per level.
BLOCK_ELEMENTS = 1024


@triton.jit
def _pool_rows(
    source, target, row, columns, dim, length, stride_s, stride_d, pair, bases, level: tl.constexpr, tile: tl.constexpr
):
    """Sum of the tokens behind the given rows of `level`; stores the means of this and all lower levels."""
    if level == 0:
        inside = (row < length)[:, None] & (columns < dim)[None, :]
        place = row.to(tl.int64)[:, None] * stride_s + columns.to(tl.int64)[None, :] * stride_d
        total = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    elif level <= 2:
        total = _pool_rows(
            source, target, row * 2, columns, dim, length, stride_s, stride_d, pair, bases, level - 1, tile
        )
        total += _pool_rows(
            source, target, row * 2 + 1, columns, dim, length, stride_s, stride_d, pair, bases, level - 1, tile
        )
    else:
        # Unrolling 64 loads takes half a minute to compile and spills, 8 still spill fp32 on some cards.
        # `pair` is 2, but the compiler cannot know.
        total = tl.zeros([row.shape[0], columns.shape[0]], tl.float32)
        for half in range(pair):
            total += _pool_rows(
                source, target, row * 2 + half, columns, dim, length, stride_s, stride_d, pair, bases, level - 1, tile
            )
    run: tl.constexpr = 1 << level
    members = tl.minimum(tl.maximum(length - row * run, 1), run)
    padded = tl.cdiv(tl.cdiv(length, run), tile) * tile
    place = (row + bases[level]).to(tl.int64)[:, None] * dim + columns[None, :]
    mean = total * (1.0 / members.to(tl.float32))[:, None]
    tl.store(target + place, mean.to(target.dtype.element_ty), mask=(row < padded)[:, None] & (columns < dim)[None, :])
    return total


# A first token of 1 would be specialised into a number, which has no `to`.
@triton.jit(do_not_specialize=["first_token", "length", "heads"])
def pool_kernel(
    key,
    value,
    pooled_key,
    pooled_value,
    heads,
    dim,
    first_token,
    length,
    total_rows,
    pair,
    bases,
    key_stride_b,
    key_stride_h,
    key_stride_s,
    key_stride_d,
    value_stride_b,
    value_stride_h,
    value_stride_s,
    value_stride_d,
    top: tl.constexpr,
    tile: tl.constexpr,
    block_rows: tl.constexpr,
    block_dim: tl.constexpr,
):
    """Program `(i, b H + h)` makes `block_rows` rows of the top level of one segment and everything below them."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.arange(0, block_dim)
    target = tl.program_id(1).to(tl.int64) * total_rows * dim
    first = first_token.to(tl.int64)
    source = key + batch * key_stride_b + head * key_stride_h + first * key_stride_s
    _pool_rows(
        source, pooled_key + target, row, columns, dim, length, key_stride_s, key_stride_d, pair, bases, top, tile
    )
    source = value + batch * value_stride_b + head * value_stride_h + first * value_stride_s
    _pool_rows(
        source, pooled_value + target, row, columns, dim, length, value_stride_s, value_stride_d, pair, bases, top, tile
    )


def pool_key_value(key: torch.Tensor, value: torch.Tensor, layout: TileLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """See `pooling.pool_key_value`; one launch per segment."""
    batch, heads, _, dim = key.shape
    rows = layout.total_tiles * layout.tile
    pooled = key.new_empty((batch, heads, rows, dim)), value.new_empty((batch, heads, rows, dim))
    block_dim = max(16, triton.next_power_of_2(dim))
    block_rows = max(1, BLOCK_ELEMENTS // block_dim)
    top = layout.num_levels - 1
    first_token = 0
    with torch.cuda.device_of(key):
        for index, length in enumerate(layout.segments):
            tiles = [layout.segment_tiles(level) for level in range(layout.num_levels)]
            bases = tuple(
                (layout.level_offset(level) + sum(tiles[level][:index])) * layout.tile
                for level in range(layout.num_levels)
            )
            # Rows of the top level, times 2^top, reach past the padded rows of every lower level.
            blocks = triton.cdiv(tiles[top][index] * layout.tile, block_rows)
            if blocks * batch * heads > 0:
                pool_kernel[(blocks, batch * heads)](
                    key, value, *pooled, heads, dim, first_token, length, rows, 2, bases,
                    *key.stride(), *value.stride(),
                    top=top, tile=layout.tile, block_rows=block_rows, block_dim=block_dim,
                    num_warps=4, enable_fp_fusion=True,
                )  # fmt: skip
            first_token += length
    return pooled
