"""Gather and scatter in the Triton interpreter, against the eager twins."""

import pytest
import torch

from fastdit_kernels import TileLayout, gather_to_tiles, scatter_from_tiles


@pytest.mark.parametrize("segments", [(300,), (29, 13), (1,), (5, 0, 3)])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_match_the_twins(segments, per_head, dtype, rng):
    layout = TileLayout(segments, 8)
    x = torch.randn(2, layout.length, 2, 24, generator=rng).to(dtype).transpose(1, 2)
    orders = torch.stack([torch.randperm(layout.length, generator=rng) for _ in range(2)])
    order = orders if per_head else orders[1].int()
    buffer = gather_to_tiles(x, order, layout, implementation="triton")
    assert torch.equal(buffer, gather_to_tiles(x, order, layout, implementation="torch"))
    spread = torch.full((2, 2, buffer.shape[2], 48), torch.nan, dtype=dtype)[..., ::2]
    spread.copy_(buffer)
    assert torch.equal(scatter_from_tiles(spread, order, layout, implementation="triton"), x)
    joined = scatter_from_tiles(spread, order, layout, token_major=True, implementation="triton")
    assert torch.equal(joined, x)
    assert joined.transpose(1, 2).is_contiguous()
