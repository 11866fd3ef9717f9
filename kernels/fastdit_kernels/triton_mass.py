"""Triton kernels of `mass` and `scores`: log-sum-exp of rows, and sums of tile pairs given it."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastdit_kernels.triton_target import compiled_for, product_precision

LOG2_E = tl.constexpr(1.4426950408889634)
MIN_BLOCK = 64
# Columns of fp32 rows multiplied at once.
FP32_SLICE = 16


@triton.jit
def _load_rows(source, row, real, columns, dim):
    place = row.to(tl.int64)[:, None] * dim + columns[None, :]
    return tl.load(source + place, mask=real[:, None] & (columns < dim)[None, :], other=0.0)


@triton.jit
def _products(
    query,
    q,
    row,
    real,
    key,
    column,
    listed,
    dim,
    block_dim: tl.constexpr,
    slice_dim: tl.constexpr,
    precision: tl.constexpr,
):
    """Inner products of rows and keys; `q` holds the rows if they are taken whole."""
    if slice_dim == block_dim:
        k = _load_rows(key, column, listed, tl.arange(0, block_dim), dim)
        products = tl.dot(q, tl.trans(k), input_precision=precision)
    else:
        # fp32 takes three passes of tf32: whole rows of 128 would spill thousands of bytes.
        products = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
        for start in range(0, block_dim, slice_dim):
            columns = start + tl.arange(0, slice_dim)
            part = _load_rows(query, row, real, columns, dim)
            k = _load_rows(key, column, listed, columns, dim)
            products = tl.dot(part, tl.trans(k), products, input_precision=precision)
    return products


@triton.jit
def lse_kernel(
    query,
    key,
    key_bias,
    lse,
    q_rows,
    k_rows,
    dim,
    scale,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_dim: tl.constexpr,
    slice_dim: tl.constexpr,
    precision: tl.constexpr,
):
    """Program `(i, b H + h)`: `lse = ln sum_k e^(scale q . k + bias)` of `block_m` rows, in one pass over the keys."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * block_m + tl.arange(0, block_m)
    query += head * q_rows * dim
    q = row
    if slice_dim == block_dim:
        q = _load_rows(query, row, row < q_rows, tl.arange(0, block_dim), dim)
    key += head * k_rows * dim
    highest = tl.full([block_m], float("-inf"), tl.float32)
    total = tl.zeros([block_m], tl.float32)
    for start in range(0, k_rows, block_n):
        column = start + tl.arange(0, block_n)
        bias = tl.load(key_bias + column, mask=column < k_rows, other=float("-inf"))
        products = _products(
            query, q, row, row < q_rows, key, column, column < k_rows, dim, block_dim, slice_dim, precision
        )
        scores = products * (scale * LOG2_E) + (bias * LOG2_E)[None, :]
        risen = tl.maximum(highest, tl.max(scores, 1))
        # While a row has only seen keys of bias -inf, every difference would be nan.
        base = tl.where(risen == float("-inf"), 0.0, risen)
        total = total * tl.exp2(highest - base) + tl.sum(tl.exp2(scores - base[:, None]), 1)
        highest = risen
    result = tl.where(total > 0.0, (highest + tl.log2(tl.where(total > 0.0, total, 1.0))) / LOG2_E, float("-inf"))
    tl.store(lse + head * q_rows + row, result, mask=row < q_rows)


@triton.jit
def mass_kernel(
    query,
    key,
    key_bias,
    lse,
    mass,
    q_tiles,
    k_tiles,
    dim,
    scale,
    q_tile: tl.constexpr,
    kv_tile: tl.constexpr,
    q_group: tl.constexpr,
    kv_group: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_dim: tl.constexpr,
    slice_dim: tl.constexpr,
    precision: tl.constexpr,
):
    """Program `(i, b H + h)`: mass of `block_m / q_group` query tiles on all key tiles.

    A tile takes a group of rows in the block, its size rounded up to a power of two; the rows too many are masked.
    """
    head = tl.program_id(1).to(tl.int64)
    lane, slot = tl.arange(0, block_m), tl.arange(0, block_n)
    first_tile = tl.program_id(0) * (block_m // q_group)
    row = (first_tile + lane // q_group) * q_tile + lane % q_group
    real = (lane % q_group < q_tile) & (first_tile + lane // q_group < q_tiles)
    query += head * q_tiles * q_tile * dim
    q = row
    if slice_dim == block_dim:
        q = _load_rows(query, row, real, tl.arange(0, block_dim), dim)
    level = tl.load(lse + head * q_tiles * q_tile + row, mask=real, other=float("inf")) * LOG2_E
    key += head * k_tiles * kv_tile * dim
    mass += head * q_tiles * k_tiles
    q_number = first_tile + tl.arange(0, block_m // q_group)
    for first in range(0, k_tiles, block_n // kv_group):
        tile = first + slot // kv_group
        column = tile * kv_tile + slot % kv_group
        listed = (slot % kv_group < kv_tile) & (tile < k_tiles)
        bias = tl.load(key_bias + column, mask=listed, other=float("-inf"))
        products = _products(query, q, row, real, key, column, listed, dim, block_dim, slice_dim, precision)
        scores = products * (scale * LOG2_E) + (bias * LOG2_E)[None, :]
        share = tl.exp2(scores - level[:, None])
        if q_group == block_m and kv_group == block_n:
            sums = tl.sum(tl.sum(share, 1), 0)
            tl.store(mass + first_tile.to(tl.int64) * k_tiles + first, sums)
        else:
            k_number = first + tl.arange(0, block_n // kv_group)
            if q_group > 1 or kv_group > 1:
                grouped = tl.reshape(share, [block_m, block_n // kv_group, kv_group])
                by_key = tl.sum(grouped, 2)
                sums = tl.sum(tl.reshape(by_key, [block_m // q_group, q_group, block_n // kv_group]), 1)
            else:
                sums = share
            place = q_number.to(tl.int64)[:, None] * k_tiles + k_number[None, :]
            tl.store(mass + place, sums, mask=(q_number < q_tiles)[:, None] & (k_number < k_tiles)[None, :])


def row_lse(query: torch.Tensor, key: torch.Tensor, key_bias: torch.Tensor, scale: float) -> torch.Tensor:
    """Natural-log `ln sum_k e^(scale q . k + bias_k)`, fp32 `[B, H, M]`.

    Args:
        query: `[B, H, M, D]`.
        key: `[B, H, N, D]`.
        key_bias: fp32 `[N]`.
        scale: Factor on the products.
    """
    query, key = query.contiguous(), key.contiguous()
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    block_dim = max(16, triton.next_power_of_2(query.shape[3]))
    if lse.numel() > 0:
        with torch.cuda.device_of(query):
            lse_kernel[(triton.cdiv(query.shape[2], MIN_BLOCK), query.shape[0] * query.shape[1])](
                query, key, key_bias, lse, query.shape[2], key.shape[2], query.shape[3], scale,
                block_m=MIN_BLOCK, block_n=MIN_BLOCK, block_dim=block_dim, slice_dim=_slice_dim(query, block_dim),
                precision=product_precision(compiled_for()),
                num_warps=4, num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
    return lse


def sum_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    key_bias: torch.Tensor,
    lse: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
) -> torch.Tensor:
    """See `mass.block_mass`: sums over query rows and keys of each tile pair, fp32 `[B, H, NQ, T]`."""
    query, key, lse = query.contiguous(), key.contiguous(), lse.contiguous()
    batch, heads, _, dim = query.shape
    q_tiles, k_tiles = query.shape[2] // q_tile, key.shape[2] // kv_tile
    mass = torch.empty((batch, heads, q_tiles, k_tiles), dtype=torch.float32, device=query.device)
    q_group, kv_group = triton.next_power_of_2(q_tile), triton.next_power_of_2(kv_tile)
    block_m, block_n = max(q_group, MIN_BLOCK), max(kv_group, MIN_BLOCK)
    block_dim = max(16, triton.next_power_of_2(dim))
    if mass.numel() > 0:
        with torch.cuda.device_of(query):
            card = compiled_for()
            # With two stages 3 registers spill there.
            num_stages = 3 if query.dtype == torch.float32 and dim <= 32 and card == "sm_120" else 2
            mass_kernel[(triton.cdiv(q_tiles, block_m // q_group), batch * heads)](
                query, key, key_bias, lse, mass, q_tiles, k_tiles, dim, scale,
                q_tile=q_tile, kv_tile=kv_tile, q_group=q_group, kv_group=kv_group,
                block_m=block_m, block_n=block_n, block_dim=block_dim, slice_dim=_slice_dim(query, block_dim),
                precision=product_precision(card),
                num_warps=8 if block_m * block_n > MIN_BLOCK * MIN_BLOCK else 4, num_stages=num_stages,
                enable_fp_fusion=True,
            )  # fmt: skip
    return mass


def _slice_dim(query: torch.Tensor, block_dim: int) -> int:
    return min(block_dim, FP32_SLICE) if query.dtype == torch.float32 else block_dim
