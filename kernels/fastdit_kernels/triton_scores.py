"""Triton kernel of `scores`: means of tiles. The scores themselves are made by the kernels of `triton_mass`."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastdit_kernels.tile_layout import TileLayout

BLOCK_ROWS = 16


@triton.jit
def means_kernel(
    tokens,
    means,
    heads,
    dim,
    first_token,
    length,
    first_tile,
    num_tiles,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    tile: tl.constexpr,
    block_rows: tl.constexpr,
    block_dim: tl.constexpr,
):
    """Program `(i, b H + h)` makes the mean of tile `i` of one segment."""
    number = tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    columns = tl.arange(0, block_dim)
    lane = tl.arange(0, block_rows)
    rows = tl.minimum(length - number * tile, tile)
    first = (first_token + number * tile).to(tl.int64)
    source = tokens + batch * stride_b + head * stride_h + first * stride_s
    total = tl.zeros([block_rows, block_dim], tl.float32)
    for start in range(0, tile, block_rows):
        row = start + lane
        place = row.to(tl.int64)[:, None] * stride_s + columns.to(tl.int64)[None, :] * stride_d
        inside = (row < rows)[:, None] & (columns < dim)[None, :]
        total += tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / rows.to(tl.float32)
    target = (tl.program_id(1).to(tl.int64) * num_tiles + first_tile + number) * dim
    tl.store(means + target + columns, mean, mask=columns < dim)


def tile_means(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """See `scores.tile_means`; one launch per segment."""
    batch, heads, _, dim = x.shape
    means = torch.empty((batch, heads, layout.num_tiles, dim), dtype=torch.float32, device=x.device)
    first_token = first_tile = 0
    with torch.cuda.device_of(x):
        for length, tiles in zip(layout.segments, layout.segment_tiles(0), strict=True):
            if tiles * batch * heads > 0:
                means_kernel[(tiles, batch * heads)](
                    x, means, heads, dim, first_token, length, first_tile, layout.num_tiles, *x.stride(),
                    tile=layout.tile, block_rows=BLOCK_ROWS, block_dim=max(16, triton.next_power_of_2(dim)),
                    num_warps=4, enable_fp_fusion=True,
                )  # fmt: skip
            first_token, first_tile = first_token + length, first_tile + tiles
    return means
