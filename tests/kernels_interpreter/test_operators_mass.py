"""The block mass kernel in the Triton interpreter, against the eager twin."""

import math

import pytest
import torch

from fastdit_kernels import KernelUnavailableError, TileLayout, block_mass


@pytest.mark.parametrize(
    ("segments", "q_tile", "kv_tile", "num_levels"),
    [
        ((150,), 64, 64, 1),
        ((61,), 16, 6, 1),
        ((70, 13), 32, 16, 2),
        ((1,), 128, 64, 1),
        ((80,), 1, 1, 1),
        ((70, 13), 1, 16, 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masses_match_the_twin(segments, q_tile, kv_tile, num_levels, dtype, rng):
    q_layout, kv_layout = TileLayout(segments, q_tile), TileLayout(segments, kv_tile, num_levels)
    q, k = (torch.randn(1, 2, q_layout.length, 24, generator=rng).to(dtype) for _ in range(2))
    lse = (q.float() @ k.float().mT / math.sqrt(24)).logsumexp(-1)
    lse[:, 0, :7] = -math.inf
    got, expected = (block_mass(q, k, lse, q_layout, kv_layout, implementation=name) for name in ("triton", "torch"))
    torch.testing.assert_close(got, expected)


def test_wide_tiles_are_refused_by_name():
    layout, x = TileLayout((8,), 256), torch.zeros(1, 1, 8, 4)
    with pytest.raises(KernelUnavailableError, match="at most 128"):
        block_mass(x, x, torch.zeros(1, 1, 8), layout, layout, implementation="triton")
