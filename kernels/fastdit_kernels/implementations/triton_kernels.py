"""Triton kernels: block-sparse forward attention, and the sorting of each row's entries into exact and ragged ones.

Scores are kept in the log2 domain, so that one row of 2**level tokens has the integer bias `level`. No arithmetic
on bf16 values outside `tl.dot`: they are widened first.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from fastdit_kernels.block_mask import LEVEL_SHIFT, TILE_BITS

# A tail is `full rows << TAIL_SHIFT | tokens behind the row after them`.
TAIL_SHIFT = 8
_LEVEL_SHIFT = tl.constexpr(LEVEL_SHIFT)
_TILE_BITS = tl.constexpr(TILE_BITS)
_TAIL_SHIFT = tl.constexpr(TAIL_SHIFT)
_TAIL_BITS = tl.constexpr((1 << TAIL_SHIFT) - 1)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["slots"])
def partition_entries(
    entries, counts, tails, sorted_entries, exact_counts, slots, KV_TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """Put the entries of exact tiles first and those of ragged tiles last; one program per row of the mask.

    A tile is ragged if its rows stand for different numbers of tokens, padding included.

    Args:
        entries: int32 `[rows, slots]`.
        counts: int32 `[rows]`.
        tails: int32 `[tiles]`, see `block_sparse_forward`.
        sorted_entries: Output like `entries`; slots past the count are not written.
        exact_counts: Output int32 `[rows]`.
        slots: Slots of a row.
        KV_TILE: Key rows of a tile.
        BLOCK: Entries read at once.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    exact_seen = 0
    ragged_seen = 0
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        listed = slot < count
        entry = tl.load(entries + row * slots + slot, mask=listed, other=0)
        full_rows = tl.load(tails + (entry & _TILE_BITS), mask=listed, other=0) >> _TAIL_SHIFT
        is_exact = (listed & (full_rows == KV_TILE)).to(tl.int32)
        is_ragged = (listed & (full_rows < KV_TILE)).to(tl.int32)
        front = exact_seen + tl.cumsum(is_exact, 0) - is_exact
        back = count - ragged_seen - tl.cumsum(is_ragged, 0)
        place = tl.where(is_ragged > 0, back, front)
        tl.store(sorted_entries + row * slots + place, entry, mask=listed)
        exact_seen += tl.sum(is_exact, 0)
        ragged_seen += tl.sum(is_ragged, 0)
    tl.store(exact_counts + row, exact_seen)


@triton.jit
def _load_rows(buffer, first_row, base, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """`[ROWS, COLUMNS]` from `first_row` on, zero past `HEAD_DIM`; `base` is the int64 element offset of the head."""
    columns = tl.arange(0, COLUMNS)
    offsets = (first_row + tl.arange(0, ROWS))[:, None] * HEAD_DIM + columns[None, :]
    if HEAD_DIM == COLUMNS:
        return tl.load(buffer + base + offsets)
    return tl.load(buffer + base + offsets, mask=columns[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def _load_query(query, base, first_row, total_rows, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The query block through a descriptor made on the device: the one form that warp specialisation accepts."""
    descriptor = tl.make_tensor_descriptor(query, [total_rows, HEAD_DIM], [HEAD_DIM, 1], [ROWS, COLUMNS])
    return descriptor.load([(base // HEAD_DIM).to(tl.int32) + first_row, 0])


@triton.jit
def _entry_row(entry, part, KV_TILE: tl.constexpr, BLOCK_N: tl.constexpr):
    return (entry & _TILE_BITS) * KV_TILE + part * BLOCK_N


@triton.jit
def _tail_bias(tail, level, part, BLOCK_N: tl.constexpr):
    """log2 of the tokens behind each key row: `level` for full rows, less for a ragged last row, -inf on padding."""
    lane = part * BLOCK_N + tl.arange(0, BLOCK_N)
    full_rows = tail >> _TAIL_SHIFT
    last = tl.log2((tail & _TAIL_BITS).to(tl.float32))
    return tl.where(lane < full_rows, level, tl.where(lane == full_rows, last, -float("inf")))


@triton.jit
def _accumulate(probabilities, values, accumulator, row_max, row_sum, new_max, PRECISION: tl.constexpr):
    """One step of the online softmax, once the probabilities relative to `new_max` are known."""
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(probabilities, 1)
    accumulator = accumulator * shrink[:, None]
    accumulator = tl.dot(probabilities.to(values.dtype), values, accumulator, input_precision=PRECISION)
    return accumulator, row_sum


# Sizes of lists differ with the method and its density: one compiled kernel for all.
@triton.jit(do_not_specialize=["heads", "q_tiles", "slots", "list_batch_stride", "list_head_stride"])
def block_sparse_forward(
    query,
    key,
    value,
    out,
    lse,
    entries,
    counts,
    exact_counts,
    order,
    tails,
    scale_log2,
    heads,
    q_tiles,
    kv_rows,
    slots,
    list_batch_stride,
    list_head_stride,
    total_q_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_TILE: tl.constexpr,
    KV_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
    HAS_RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of `BLOCK_M` query rows over the tiles listed for their query tile; one program each.

    Args:
        query: `[B, H, q_tiles * Q_TILE, HEAD_DIM]`.
        key: `[B, H, kv_rows, HEAD_DIM]`, or a tensor descriptor of it as `[B * H * kv_rows, HEAD_DIM]`.
        value: Like `key`.
        out: Like `query`.
        lse: fp32 `[B, H, q_tiles * Q_TILE]`, natural log.
        entries: int32 rows of `slots`, tile | level << 28, entries of exact tiles first.
        counts: int32, entries of each row of `entries`.
        exact_counts: int32, entries of exact tiles of each row.
        order: int32 `[B * H * q_tiles]`: which query tile each program takes.
        tails: int32 per key tile, `full rows << 8 | tokens behind the row after them`; rows after that are padding.
        scale_log2: `scale * log2(e)`, not negative.
        heads: H.
        q_tiles: Query tiles of a head.
        kv_rows: Key rows of a head.
        slots: Slots of a row of `entries`.
        list_batch_stride: Rows of `entries` from one batch to the next, 0 if all share one.
        list_head_stride: Likewise for heads.
        total_q_rows: `B * H * q_tiles * Q_TILE`.
        HEAD_DIM: D.
        BLOCK_D: `HEAD_DIM` rounded up to a power of two.
        Q_TILE: Query rows of a tile.
        KV_TILE: Key rows of a tile.
        BLOCK_M: Query rows of a program, a divisor of `Q_TILE`.
        BLOCK_N: Key rows of a step, a divisor of `KV_TILE`.
        STAGES: Depth of the software pipeline.
        DESCRIPTORS: `key` and `value` are tensor descriptors.
        WARP_SPECIALIZE: Loads and matrix products in different warps.
        HAS_RAGGED: Whether the layout has ragged tiles.
        PRECISION: `input_precision` of the dots; matters for fp32 only.
    """
    Q_PARTS: tl.constexpr = Q_TILE // BLOCK_M
    KV_PARTS: tl.constexpr = KV_TILE // BLOCK_N
    row = tl.load(order + tl.program_id(0) // Q_PARTS)
    head = row // q_tiles
    list_row = (head // heads) * list_batch_stride + (head % heads) * list_head_stride + row % q_tiles
    list_start = entries + list_row.to(tl.int64) * slots
    count = tl.load(counts + list_row)
    exact_count = count
    # A second loop does not compile with warp specialisation, so that there one loop takes all entries.
    if HAS_RAGGED and not WARP_SPECIALIZE:
        exact_count = tl.load(exact_counts + list_row)

    first_q = row.to(tl.int64) * Q_TILE + (tl.program_id(0) % Q_PARTS) * BLOCK_M
    if WARP_SPECIALIZE:
        q = _load_query(query, first_q * HEAD_DIM, 0, total_q_rows, HEAD_DIM, BLOCK_M, BLOCK_D)
    else:
        q = _load_rows(query, 0, first_q * HEAD_DIM, HEAD_DIM, BLOCK_M, BLOCK_D)
    kv_base = head.to(tl.int64) * kv_rows
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)

    # Exact tiles: every row stands for 2**level tokens, so that the bias is one scalar.
    for step in tl.range(0, exact_count * KV_PARTS, num_stages=STAGES, warp_specialize=WARP_SPECIALIZE):
        entry = tl.load(list_start + step // KV_PARTS)
        first_row = _entry_row(entry, step % KV_PARTS, KV_TILE, BLOCK_N)
        level = (entry >> _LEVEL_SHIFT).to(tl.float32)
        if DESCRIPTORS:
            k = key.load([(kv_base + first_row).to(tl.int32), 0])
        else:
            k = _load_rows(key, first_row, kv_base * HEAD_DIM, HEAD_DIM, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if HAS_RAGGED and WARP_SPECIALIZE:
            bias = _tail_bias(tl.load(tails + (entry & _TILE_BITS)), level, step % KV_PARTS, BLOCK_N)
            scores = scores * scale_log2 + bias[None, :]
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            probabilities = tl.exp2(scores - new_max[:, None])
        else:
            new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2 + level)
            probabilities = tl.exp2(scores * scale_log2 - (new_max - level)[:, None])
        if DESCRIPTORS:
            v = value.load([(kv_base + first_row).to(tl.int32), 0])
        else:
            v = _load_rows(value, first_row, kv_base * HEAD_DIM, HEAD_DIM, BLOCK_N, BLOCK_D)
        accumulator, row_sum = _accumulate(probabilities, v, accumulator, row_max, row_sum, new_max, PRECISION)
        row_max = new_max

    # Ragged tiles, at most one per segment and level: the bias differs by row and is -inf on padding.
    if HAS_RAGGED and not WARP_SPECIALIZE:
        for step in tl.range(exact_count * KV_PARTS, count * KV_PARTS, num_stages=1):
            entry = tl.load(list_start + step // KV_PARTS)
            first_row = _entry_row(entry, step % KV_PARTS, KV_TILE, BLOCK_N)
            if DESCRIPTORS:
                k = key.load([(kv_base + first_row).to(tl.int32), 0])
                v = value.load([(kv_base + first_row).to(tl.int32), 0])
            else:
                k = _load_rows(key, first_row, kv_base * HEAD_DIM, HEAD_DIM, BLOCK_N, BLOCK_D)
                v = _load_rows(value, first_row, kv_base * HEAD_DIM, HEAD_DIM, BLOCK_N, BLOCK_D)
            level = (entry >> _LEVEL_SHIFT).to(tl.float32)
            bias = _tail_bias(tl.load(tails + (entry & _TILE_BITS)), level, step % KV_PARTS, BLOCK_N)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2 + bias[None, :]
            # Padding follows real rows in every tile, so the maximum is finite from the first step on.
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            probabilities = tl.exp2(scores - new_max[:, None])
            accumulator, row_sum = _accumulate(probabilities, v, accumulator, row_max, row_sum, new_max, PRECISION)
            row_max = new_max

    inverse = 1.0 / tl.where(row_sum > 0, row_sum, 1.0)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    target = out + first_q * HEAD_DIM + rows[:, None] * HEAD_DIM + columns[None, :]
    result = (accumulator * inverse[:, None]).to(out.dtype.element_ty)
    tl.store(lse + first_q + rows, (row_max + tl.log2(row_sum)) * _LN_2)
    if HEAD_DIM == BLOCK_D:
        tl.store(target, result)
    else:
        tl.store(target, result, mask=columns[None, :] < HEAD_DIM)
