"""Triton kernels of `pyramid_errors`: two passes over the keys, neither of which writes a score.

The first pass finds log-sum-exp and output of every row. Given them, the second one needs no running peak: pooled
weights are made from the scores of the tokens in registers, and what pooling changes is summed as
`sum (pooled weight - weight) value` over tokens. So the difference is taken in fp32 before anything is rounded, and no
pooled key or value is read. Weights and values are rounded to bf16, or to tf32 for fp32 input: errors are estimates
from a few rows, and what rounding costs is a share of them, not of what they are the difference of.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.triton_mass import LOG2_E, _load_rows, _products, _slice_dim
from fastdit_kernels.triton_target import compiled_for, product_precision

BLOCK_M = 64
BLOCK_N = 64
# Columns of projected values and mass, padded; a product of matrices takes at least 16.
BLOCK_VALUE = tl.constexpr(16)
# Columns of 16-bit queries that a program on sm_120 can hold.
BLOCK_DIM_SM_120 = 64
# Tiles of level 0 a program of the second pass streams, unless a node of the coarsest level has more.
TILES_AT_ONCE = 32


@triton.jit
def row_statistics_kernel(
    rows,
    key,
    value,
    lse,
    size,
    num_rows,
    num_keys,
    dim,
    scale,
    value_columns: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_dim: tl.constexpr,
    slice_dim: tl.constexpr,
    precision: tl.constexpr,
):
    """Program `(i, g)`: base-2 log-sum-exp and length of the output of `block_m` rows, in one pass over the keys."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * block_m + tl.arange(0, block_m)
    lane = tl.arange(0, BLOCK_VALUE)
    rows += head * num_rows * dim
    key += head * num_keys * dim
    value += head * num_keys * value_columns
    q = row
    if slice_dim == block_dim:
        q = _load_rows(rows, row, row < num_rows, tl.arange(0, block_dim), dim)
    highest = tl.full([block_m], float("-inf"), tl.float32)
    mass = tl.zeros([block_m], tl.float32)
    output = tl.zeros([block_m, BLOCK_VALUE], tl.float32)
    for start in range(0, num_keys, block_n):
        column = start + tl.arange(0, block_n)
        inside = column < num_keys
        products = _products(rows, q, row, row < num_rows, key, column, inside, dim, block_dim, slice_dim, precision)
        scores = tl.where(inside[None, :], products * (scale * LOG2_E), float("-inf"))
        risen = tl.maximum(highest, tl.max(scores, 1))
        weight = tl.exp2(scores - risen[:, None])
        fall = tl.exp2(highest - risen)
        v = _load_rows(value, column, inside, lane, value_columns)
        mass = mass * fall + tl.sum(weight, 1)
        output = tl.dot(weight.to(v.dtype), v, output * fall[:, None], input_precision="tf32")
        highest = risen
    # The last column sums up the mass again, from rounded weights.
    squares = tl.where((lane < value_columns - 1)[None, :], output * output, 0.0)
    place = head * num_rows + row
    tl.store(lse + place, highest + tl.log2(mass), mask=row < num_rows)
    tl.store(size + place, tl.sqrt(tl.sum(squares, 1)) / mass, mask=row < num_rows)


@triton.jit
def _store_errors(target, change, size, node, q_number, q_tiles, value_columns: tl.constexpr, q_group: tl.constexpr):
    """`|change of the output| + |change of the mass| size`, summed over the rows of a query tile."""
    lane = tl.arange(0, BLOCK_VALUE)[None, :]
    squares = tl.sum(tl.where(lane < value_columns - 1, change * change, 0.0), 1)
    mass = tl.sum(tl.where(lane == value_columns - 1, change, 0.0), 1)
    error = tl.sqrt(squares) + tl.abs(mass) * size
    if q_group > 1:
        error = tl.sum(tl.reshape(error, [change.shape[0] // q_group, q_group]), 1)
    place = node * q_tiles + q_number
    tl.store(target + place, error, mask=q_number < q_tiles)


@triton.jit
def _pooled_change(scores, weight, level, first, length, run: tl.constexpr):
    """Weights of the tokens with runs of `run` of them pooled, less their own weights."""
    block_m: tl.constexpr = scores.shape[0]
    tile: tl.constexpr = scores.shape[1]
    # A ragged last run has fewer members; padding has no score and adds nothing.
    start = first + tl.arange(0, tile // run) * run
    members = tl.minimum(tl.maximum(length - start, 1), run).to(tl.float32)
    mean = tl.sum(tl.reshape(scores, [block_m, tile // run, run]), 2) / members[None, :]
    pooled = tl.exp2(tl.minimum(mean - level[:, None], 0.0))
    spread = tl.broadcast_to(pooled[:, :, None], [block_m, tile // run, run])
    return tl.reshape(spread, [block_m, tile]) - weight


@triton.jit
def node_errors_kernel(
    rows,
    key,
    value,
    lse,
    size,
    use,
    drop,
    q_tiles,
    samples,
    num_keys,
    length,
    tiles,
    nodes,
    dim,
    scale,
    num_levels: tl.constexpr,
    tile: tl.constexpr,
    steps: tl.constexpr,
    q_group: tl.constexpr,
    value_columns: tl.constexpr,
    block_m: tl.constexpr,
    block_dim: tl.constexpr,
    slice_dim: tl.constexpr,
    precision: tl.constexpr,
):
    """Program `(i, j, g)`: errors of `block_m / q_group` query tiles on `steps` tiles and all nodes above them."""
    head = tl.program_id(2).to(tl.int64)
    slot, lane = tl.arange(0, block_m), tl.arange(0, BLOCK_VALUE)
    first_tile = tl.program_id(0) * (block_m // q_group)
    row = (first_tile + slot // q_group) * samples + slot % q_group
    real = (slot % q_group < samples) & (first_tile + slot // q_group < q_tiles)
    rows += head * q_tiles * samples * dim
    key += head * num_keys * dim
    value += head * num_keys * value_columns
    use += head * (nodes - tiles) * q_tiles
    drop += head * nodes * q_tiles
    q = row
    if slice_dim == block_dim:
        q = _load_rows(rows, row, real, tl.arange(0, block_dim), dim)
    place = head * q_tiles * samples + row
    # Rows that are not there have no weight anywhere.
    level = tl.load(lse + place, mask=real, other=float("inf"))
    length_of_output = tl.load(size + place, mask=real, other=0.0)
    q_number = first_tile + tl.arange(0, block_m // q_group)
    # Of the mean over rows, and half of it. Applied to products, which then are no sums in place: those would make the
    # matrix units of sm_90 wait for each other.
    share = 0.5 / samples
    zero = tl.zeros([block_m, BLOCK_VALUE], tl.float32)
    fine, change = (), ()
    for _ in tl.static_range(1, num_levels):
        fine, change = fine + (zero,), change + (zero,)  # type: ignore[assignment]  # noqa: RUF005
    first = tl.program_id(1) * steps
    for number in range(first, tl.minimum(first + steps, tiles)):
        column = number * tile + tl.arange(0, tile)
        inside = column < length
        products = _products(rows, q, row, real, key, column, inside, dim, block_dim, slice_dim, precision)
        scores = products * (scale * LOG2_E)
        v = _load_rows(value, column, inside, lane, value_columns)
        # Never above one, but on padding, where a score of 0 could be far above the others.
        weight = tl.exp2(tl.minimum(scores - level[:, None], 0.0))
        own = tl.dot(weight.to(v.dtype), v, input_precision="tf32") * share
        _store_errors(drop, own, length_of_output, number, q_number, q_tiles, value_columns, q_group)
        node = tiles
        for pooled in tl.static_range(1, num_levels):
            extra = _pooled_change(scores, weight, level, number * tile, length, 1 << pooled)
            total = fine[pooled - 1] + own
            moved = change[pooled - 1] + tl.dot(extra.to(v.dtype), v, input_precision="tf32") * share
            if ((number + 1) % (1 << pooled) == 0) | (number + 1 == tiles):
                here = node + number // (1 << pooled)
                _store_errors(drop, total, length_of_output, here, q_number, q_tiles, value_columns, q_group)
                _store_errors(use, moved, length_of_output, here - tiles, q_number, q_tiles, value_columns, q_group)
                total = zero
                moved = zero
            # Triton has no stars.
            fine = fine[: pooled - 1] + (total,) + fine[pooled:]  # noqa: RUF005
            change = change[: pooled - 1] + (moved,) + change[pooled:]  # noqa: RUF005
            node += tl.cdiv(tiles, 1 << pooled)


def pyramid_errors(
    rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TileLayout, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `node_errors.pyramid_errors`: `use` and `drop`, fp32 `[G, t, n]`."""
    groups, q_tiles, samples, dim = rows.shape
    # Weights of one row among many are below what fp16 holds.
    value = value.to(torch.float32 if rows.dtype == torch.float32 else torch.bfloat16).contiguous()
    rows, key = rows.contiguous(), key.contiguous()
    tiles = layout.segment_tiles(0)[0]
    nodes = sum(layout.segment_tiles(level)[0] for level in range(layout.num_levels))
    lse, size = (rows.new_empty((groups, q_tiles * samples), dtype=torch.float32) for _ in range(2))
    # Query tiles last: one store then is one piece of memory.
    use, drop = (rows.new_empty((groups, count, q_tiles), dtype=torch.float32) for count in (nodes - tiles, nodes))
    block_dim = max(16, triton.next_power_of_2(dim))
    q_group, card = triton.next_power_of_2(samples), compiled_for()
    block_m, num_warps, slice_dim = _blocks(rows, q_group, layout.tile, block_dim, card)
    common = {
        "value_columns": value.shape[2],
        "block_m": block_m,
        "block_dim": block_dim,
        "slice_dim": slice_dim,
        "precision": product_precision(card),
        "num_stages": 2,
        "enable_fp_fusion": True,
    }
    if drop.numel() > 0:
        steps = max(TILES_AT_ONCE, 1 << (layout.num_levels - 1))
        grid = triton.cdiv(q_tiles, block_m // q_group), triton.cdiv(tiles, steps), groups
        with torch.cuda.device_of(rows):
            row_statistics_kernel[(triton.cdiv(q_tiles * samples, block_m), groups)](
                rows, key, value, lse, size, q_tiles * samples, key.shape[1], dim, scale,
                block_n=BLOCK_N, num_warps=4, **common,
            )  # fmt: skip
            node_errors_kernel[grid](
                rows, key, value, lse, size, use, drop, q_tiles, samples, key.shape[1], layout.segments[0], tiles,
                nodes, dim, scale, num_levels=layout.num_levels, tile=layout.tile, steps=steps, q_group=q_group,
                num_warps=num_warps, **common,
            )  # fmt: skip
    by_tile = rows.new_empty((groups, q_tiles, nodes), dtype=torch.float32)
    by_tile[:, :, :tiles] = 0
    by_tile[:, :, tiles:] = use.transpose(1, 2)
    return by_tile, drop.transpose(1, 2).contiguous()


def _blocks(rows: torch.Tensor, q_group: int, tile: int, block_dim: int, card: str) -> tuple[int, int, int]:
    """Rows of a program, warps of the second pass, and columns of queries that are multiplied at once.

    Two sums per level are held in registers, so wide products need more warps. On sm_120 ptxas spills where it does not
    on other cards: there fewer rows (fp32), or queries that are read again, are what leaves room.
    """
    block_m, slice_dim, is_fp32 = BLOCK_M, _slice_dim(rows, block_dim), rows.dtype == torch.float32
    num_warps = 8 if tile > BLOCK_N or is_fp32 else 4
    if card == "sm_120":
        if is_fp32:
            block_m = max(BLOCK_M // 2, q_group)
        elif block_dim > BLOCK_DIM_SM_120:
            num_warps, slice_dim = 8, BLOCK_DIM_SM_120
    return block_m, num_warps, slice_dim
