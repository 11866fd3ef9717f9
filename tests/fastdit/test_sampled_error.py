"""Attention of a few sampled rows by all their scores, which is how a GPU takes them."""

import pytest
import torch

from fastdit.selectors import sampled_error
from fastdit.selectors.sampled_error import masked_attention
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention

ROWS, TILES = 2, 5


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("kv_len", [(64,), (61,), (50, 13)])
@pytest.mark.parametrize("shared", [False, True])
def test_masked_attention_is_the_reference(num_levels, kv_len, shared, rng, monkeypatch):
    monkeypatch.setattr(sampled_error, "GPU_WORKSPACE_BYTES", 1 << 14)  # some heads at a time
    query = torch.randn(2, 3, TILES * ROWS, 16, generator=rng, dtype=torch.float64)
    key, value = (torch.randn(2, 3, sum(kv_len), 16, generator=rng, dtype=torch.float64) for _ in range(2))
    tiles = TileLayout(kv_len, 8, num_levels).total_tiles
    keep = torch.rand(1 if shared else 2, 1 if shared else 3, TILES, tiles, generator=rng) < 0.4
    keep[:, :, 1] = False
    mask = BlockMask.from_dense(keep, q_len=TILES * ROWS, kv_len=kv_len, q_tile=ROWS, kv_tile=8, num_levels=num_levels)
    got = masked_attention(query, key, value, mask, 0.3)
    expected = block_sparse_attention(query, key, value, mask, scale=0.3, implementation="reference")
    torch.testing.assert_close(got, expected)
    assert not got[:, :, ROWS : 2 * ROWS].any()
    assert got.any()
