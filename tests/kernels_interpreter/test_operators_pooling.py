"""The pooling kernel in the Triton interpreter, against the eager twin."""

import pytest
import torch

from fastdit_kernels import TileLayout, pool_key_value, pool_pyramid


@pytest.mark.parametrize(
    ("segments", "tile", "num_levels", "dtype"),
    [
        ((61,), 8, 3, torch.float32),
        ((29, 13), 8, 3, torch.bfloat16),
        ((29, 13), 8, 2, torch.float16),
        ((1,), 16, 2, torch.float32),
        ((48, 16), 16, 1, torch.bfloat16),
        ((5, 0, 3), 4, 2, torch.float32),
    ],
)
def test_all_levels_match_the_twin(segments, tile, num_levels, dtype, rng):
    layout = TileLayout(segments, tile, num_levels)
    key = torch.randn(1, layout.length, 2, 24, generator=rng).to(dtype).transpose(1, 2)
    value = torch.randn(1, 2, layout.length, 24, generator=rng).to(dtype)
    pooled = pool_key_value(key, value, layout, implementation="triton")
    for got, x in zip(pooled, (key, value), strict=True):
        # A low-precision mean may round the other way: the kernel multiplies by the reciprocal count.
        torch.testing.assert_close(got, pool_pyramid(x, layout))


def test_levels_up_to_64_tokens(rng):
    layout = TileLayout((130,), 16, 7)
    x = torch.randn(1, 1, 130, 16, generator=rng)
    pooled, _ = pool_key_value(x, x, layout, implementation="triton")
    torch.testing.assert_close(pooled, pool_pyramid(x, layout))
