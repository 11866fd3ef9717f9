import math

import pytest
import torch

from fastdit_kernels import InvalidInputError, merge_attention


def attend(q, k, v):
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("shift", [0, 300, -300])
def test_two_halves_are_the_whole(shift, rng):
    q, k, v = (torch.randn(2, 3, 17, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    k[:, :, :9] += shift
    out, lse = merge_attention(*attend(q, k[:, :, :9], v[:, :, :9]), *attend(q, k[:, :, 9:], v[:, :, 9:]))
    expected, expected_lse = attend(q, k, v)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_empty_parts_do_not_count(rng):
    out_a, lse_a = torch.randn(4, 8, generator=rng), torch.randn(4, generator=rng)
    nothing, never = torch.full_like(out_a, math.nan), torch.full_like(lse_a, -math.inf)
    for arguments in ((out_a, lse_a, nothing, never), (nothing, never, out_a, lse_a)):
        out, lse = merge_attention(*arguments)
        assert torch.equal(out, out_a)
        assert torch.equal(lse, lse_a)
    out, lse = merge_attention(nothing, never, nothing, never)
    assert not out.any()
    assert torch.equal(lse, never)


def test_low_precision_output_keeps_its_dtype(rng):
    a, b = (torch.randn(5, 8, generator=rng).bfloat16() for _ in range(2))
    out, lse = merge_attention(a, torch.zeros(5), b, torch.zeros(5))
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, ((a.float() + b.float()) / 2).bfloat16())


def test_the_operator_is_registered_properly(rng):
    out, lse = torch.randn(1, 2, 5, 4, generator=rng), torch.randn(1, 2, 5, generator=rng)
    torch.library.opcheck(torch.ops.fastdit.merge_attention.default, (out, lse, out, lse, "auto"))


def test_parts_that_do_not_fit_are_refused():
    out, lse = torch.zeros(2, 4), torch.zeros(2)
    with pytest.raises(InvalidInputError, match="out_a is"):
        merge_attention(out, lse, out[:1], lse)
    with pytest.raises(InvalidInputError, match="lse_a is"):
        merge_attention(out, lse.half(), out, lse.half())
