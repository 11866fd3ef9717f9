"""The merge kernel in the Triton interpreter, against the eager twin."""

import math

import pytest
import torch

from fastdit_kernels import KernelUnavailableError, merge_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_matches_the_twin(dtype, rng):
    outs = [torch.randn(2, 70, 3, 24, generator=rng).to(dtype).transpose(1, 2) for _ in range(2)]
    lses = [100 * torch.randn(2, 3, 70, generator=rng) for _ in range(2)]
    for part, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        lse[:, part], out[:, part] = -math.inf, math.nan
        lse[:, 2, :7], out[:, 2, :7] = -math.inf, math.nan
    arguments = (outs[0], lses[0], outs[1], lses[1])
    out, lse = merge_attention(*arguments, implementation="triton")
    expected, expected_lse = merge_attention(*arguments, implementation="torch")
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)
    assert (lse[:, 2, :7] == -math.inf).all()


def test_a_wide_lse_is_refused_by_name():
    out, lse = torch.zeros(2, 4), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(KernelUnavailableError, match="LSE is float64"):
        merge_attention(out, lse, out, lse, implementation="triton")
