"""Sparse must be faster than dense on a CPU; the bounds leave room for noisy machines."""

import pytest
import torch

from fastdit_kernels.bench import bench_case
from fastdit_kernels.bench_check import random_mask


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("uneven", [False, True])
def test_a_tenth_of_the_tiles_is_several_times_faster(dtype, uneven):
    # With one thread the bench counts CPU time. 5 to 8 times is usual; a neighbour in the cache takes its share.
    assert torch.get_num_threads() == 1
    case = bench_case((1, 2, 4096, 64), dtype, 0.1, uneven, tile=128, repeats=5)
    assert case["density"] == pytest.approx(0.1, abs=0.02)
    assert case["speedup"] >= 3.0


def test_uneven_rows_differ_by_up_to_eight():
    counts = random_mask((1, 4, 8192, 64), 128, 0.1, uneven=True).counts
    assert 5 <= counts.max() / counts.min() <= 8.5
    assert counts.float().mean() / 64 == pytest.approx(0.1, rel=0.1)
