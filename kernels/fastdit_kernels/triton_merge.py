"""Triton kernel of `merge`."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_ELEMENTS = 4096


@triton.jit
def merge_kernel(out_a, lse_a, out_b, lse_b, out, lse, rows, dim, block_rows: tl.constexpr, block_dim: tl.constexpr):
    """Program `i` merges `block_rows` rows."""
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    columns = tl.arange(0, block_dim)
    real = row < rows
    nothing = float("-inf")
    a = tl.load(lse_a + row, mask=real, other=nothing)
    b = tl.load(lse_b + row, mask=real, other=nothing)
    highest = tl.maximum(a, b)
    # With both parts empty every difference below would be nan.
    base = tl.where(highest == nothing, 0.0, highest)
    weight_a, weight_b = tl.exp(a - base), tl.exp(b - base)
    total = weight_a + weight_b
    scale = 1.0 / tl.where(total > 0.0, total, 1.0)
    place = row[:, None] * dim + columns[None, :]
    inside = real[:, None] & (columns < dim)[None, :]
    # A row that saw no key is not read: it may hold anything.
    part_a = tl.load(out_a + place, mask=inside & (weight_a > 0.0)[:, None], other=0.0).to(tl.float32)
    part_b = tl.load(out_b + place, mask=inside & (weight_b > 0.0)[:, None], other=0.0).to(tl.float32)
    merged = part_a * (weight_a * scale)[:, None] + part_b * (weight_b * scale)[:, None]
    tl.store(out + place, merged.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + row, tl.where(total > 0.0, base + tl.log(tl.where(total > 0.0, total, 1.0)), nothing), mask=real)


def merge_attention(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `merge.merge_attention`."""
    out, lse = out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)
    dim = out.shape[-1]
    block_dim = max(16, triton.next_power_of_2(dim))
    block_rows = max(1, BLOCK_ELEMENTS // block_dim)
    parts = (part.contiguous() for part in (out_a, lse_a, out_b, lse_b))
    if lse.numel() > 0:
        with torch.cuda.device_of(out):
            merge_kernel[(triton.cdiv(lse.numel(), block_rows),)](
                *parts,
                out,
                lse,
                lse.numel(),
                dim,
                block_rows=block_rows,
                block_dim=block_dim,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out, lse
