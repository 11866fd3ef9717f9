"""Merging attention over two disjoint sets of keys into attention over both."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.errors import InvalidInputError


def merge_attention(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`lse = ln(e^lse_a + e^lse_b)`, `out = e^(lse_a - lse) out_a + e^(lse_b - lse) out_b`.

    Exact where both parts attend to disjoint keys. A part that saw no key has an LSE of -inf; its output is ignored,
    whatever it holds. Where both saw none the result is 0 and -inf.

    Args:
        out_a: `[..., D]`, any strides.
        lse_a: Natural-log LSE `[...]`, fp32 or wider.
        out_b: Like `out_a`.
        lse_b: Like `lse_a`.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        Output in the dtype of `out_a` and LSE in the dtype of `lse_a`, both contiguous; computed in fp32, or fp64 for
        an fp64 LSE.

    Raises:
        InvalidInputError: Shapes or dtypes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    for name, first, second in (("out", out_a, out_b), ("lse", lse_a, lse_b)):
        if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
            raise InvalidInputError(
                f"{name}_a is {first.dtype} {tuple(first.shape)} on {first.device}, {name}_b {second.dtype} "
                f"{tuple(second.shape)} on {second.device}: both must agree"
            )
    if lse_a.shape != out_a.shape[:-1] or lse_a.dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(
            f"lse_a is {lse_a.dtype} {tuple(lse_a.shape)}: accepted is float32 or float64 {tuple(out_a.shape[:-1])}"
        )
    merged: tuple[torch.Tensor, torch.Tensor] = _merge_attention(out_a, lse_a, out_b, lse_b, implementation)
    return merged


@torch.library.custom_op("fastdit::merge_attention", mutates_args=())
def _merge_attention(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    limit = "the LSE is float64, it takes float32" if lse_a.dtype == torch.float64 else None
    if runs_triton(implementation, out_a, limit):
        from fastdit_kernels import triton_merge

        return triton_merge.merge_attention(out_a, lse_a, out_b, lse_b)
    return merge_parts([(out_a, lse_a), (out_b, lse_b)])


def merge_parts(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`merge_attention` of any number of parts: `lse = ln(sum_i e^lse_i)`, `out = sum_i e^(lse_i - lse) out_i`.

    Args:
        parts: Outputs `[..., D]` with their LSE `[...]`, over disjoint keys.

    Returns:
        Output in the dtype of the first one, and LSE.
    """
    listed = torch.stack([lse for _, lse in parts])
    # Finite also where no part saw a key, so that no difference of infinities is taken.
    largest = listed.amax(0).clamp_min_(torch.finfo(listed.dtype).min)
    shares = (listed - largest).exp_()
    summed = shares.sum(0)
    # At least 1 where a part saw keys: the largest share is 1.
    weights = (shares / summed.clamp_min(1.0)).unsqueeze(-1)
    # The garbage of an empty part is kept out. On a CPU, where asking waits for nothing, that pass is spared.
    empty = (listed == -torch.inf).unsqueeze(-1)
    has_garbage = listed.device.type != "cpu" or bool(empty.any())
    out = torch.zeros(parts[0][0].shape, dtype=listed.dtype, device=listed.device)
    for number, (part, _) in enumerate(parts):
        wide = part.to(out.dtype)
        out.addcmul_(weights[number], wide.masked_fill(empty[number], 0.0) if has_garbage else wide)
    return out.to(parts[0][0].dtype), summed.log_().add_(largest)


@_merge_attention.register_fake
def _(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)
