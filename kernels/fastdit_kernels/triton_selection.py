"""Triton kernel of `selection`: one program per row of scores finds a threshold by bisection, without sorting.

Bisection runs over the bit patterns of the scores, which order like the scores themselves, so that it ends at the exact
threshold and ties are seen as ties.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _tiles_for_mass(mass, key, free, pinned_mass, pinned, top_p):
    """Least number of tiles, the pinned ones included, whose mass reaches `top_p`."""
    # Masses are not negative: their keys lie between 0 and that of infinity.
    low, high = 0, 0x7F800000
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = pinned_mass + tl.sum(tl.where(free & (key >= middle), mass, 0.0), 0) >= top_p
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    above = free & (key > low)
    missing = top_p - pinned_mass - tl.sum(tl.where(above, mass, 0.0), 0)
    ties = tl.sum((free & (key == low)).to(tl.int32), 0)
    value = tl.cast(low, tl.float32, bitcast=True)
    # Where the threshold is 0 the whole row falls short and all of it is needed.
    some = tl.minimum(tl.ceil(missing / tl.where(value > 0.0, value, 1.0)), ties.to(tl.float32)).to(tl.int32)
    used = tl.where(missing > 0.0, tl.where(value > 0.0, some, ties), 0)
    return pinned + tl.sum(above.to(tl.int32), 0) + used


# Bounds differ from layer to layer: one compiled kernel for all.
@triton.jit(do_not_specialize=["heads", "q_tiles", "min_tiles", "max_tiles"])
def select_kernel(
    scores,
    forced,
    indices,
    counts,
    heads,
    q_tiles,
    tiles,
    slots,
    top_p,
    min_tiles,
    max_tiles,
    forced_stride_b,
    forced_stride_h,
    forced_stride_q,
    forced_stride_k,
    has_forced: tl.constexpr,
    has_top_p: tl.constexpr,
    block: tl.constexpr,
):
    """Program `r` writes the kept tiles of row `r` of the flattened `[B H NQ]`, ascending, and their count."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    real = column < tiles
    score = tl.load(scores + program * tiles + column, mask=real, other=0.0)
    pinned = column < 0
    if has_forced:
        q, batch_head = program % q_tiles, program // q_tiles
        place = q * forced_stride_q + (batch_head % heads) * forced_stride_h + (batch_head // heads) * forced_stride_b
        pinned = tl.load(forced + place + column * forced_stride_k, mask=real, other=0) != 0
    free = real & (pinned == 0)
    # Negative floats order backwards in their bits; -0 is made 0.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    pinned_count = tl.sum(pinned.to(tl.int32), 0)
    wanted = max_tiles
    if has_top_p:
        pinned_mass = tl.sum(tl.where(pinned, score, 0.0), 0)
        wanted = _tiles_for_mass(score, key, free, pinned_mass, pinned_count, top_p)
        wanted = tl.minimum(tl.maximum(wanted, min_tiles), max_tiles)
    count = tl.minimum(tl.maximum(wanted, pinned_count), slots)
    open_slots = count - pinned_count
    low, high = tl.full([], -2147483648, tl.int64), tl.full([], 2147483647, tl.int64)
    for _ in range(32):
        middle = low + (high - low) // 2
        enough = tl.sum((free & (key >= middle)).to(tl.int32), 0) >= open_slots
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    above = free & (key > low)
    tie = free & (key == low)
    left = open_slots - tl.sum(above.to(tl.int32), 0)
    keep = pinned | above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= left))
    slot = tl.cumsum(keep.to(tl.int32), 0) - 1
    row = indices + program * slots
    tl.store(row + slot, column, mask=keep & (slot < slots))
    tl.store(row + column, tl.zeros_like(column), mask=(column >= count) & (column < slots))
    tl.store(counts + program, count)


def select_tiles(
    scores: torch.Tensor,
    forced: torch.Tensor | None,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
    slots: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `selection.select_tiles`; `forced` has the shape of `scores`, any strides."""
    _, heads, q_tiles, tiles = scores.shape
    scores = scores.contiguous()
    indices = torch.empty((*scores.shape[:3], slots), dtype=torch.int32, device=scores.device)
    counts = torch.empty(scores.shape[:3], dtype=torch.int32, device=scores.device)
    pinned = scores if forced is None else forced.view(torch.int8)
    block = max(16, triton.next_power_of_2(tiles))
    if counts.numel() > 0:
        with torch.cuda.device_of(scores):
            select_kernel[(counts.numel(),)](
                scores, pinned, indices, counts, heads, q_tiles, tiles, slots,
                0.0 if top_p is None else top_p, min_tiles, min(max_tiles, tiles), *pinned.stride(),
                has_forced=forced is not None, has_top_p=top_p is not None, block=block,
                num_warps=4 if block <= 2048 else 8 if block <= 4096 else 16, enable_fp_fusion=True,
            )  # fmt: skip
    return indices, counts
