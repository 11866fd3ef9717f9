"""Tile means and scores in the Triton interpreter, against the eager twins."""

import pytest
import torch

from fastdit_kernels import TileLayout, tile_means, tile_scores


@pytest.mark.parametrize("segments", [(150,), (29, 13), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_match_the_twin(segments, dtype, rng):
    layout = TileLayout(segments, 24)
    x = torch.randn(2, layout.length, 2, 24, generator=rng).to(dtype).transpose(1, 2)
    torch.testing.assert_close(tile_means(x, layout, implementation="triton"), tile_means(x, layout))


@pytest.mark.parametrize(
    ("segments", "dtype"), [((150,), torch.float32), ((29, 13), torch.float16), ((1,), torch.float16)]
)
@pytest.mark.parametrize(
    "settings",
    [{"estimator": "mean"}, {"estimator": "sampled"}, {"estimator": "sampled", "q_samples": 3, "kv_samples": 6}],
)
def test_scores_match_the_twin(segments, dtype, settings, rng):
    q_layout, kv_layout = TileLayout(segments, 16), TileLayout(segments, 8)
    q, k = (3 * torch.randn(1, 2, q_layout.length, 24, generator=rng).to(dtype) for _ in range(2))
    got = tile_scores(q, k, q_layout, kv_layout, implementation="triton", **settings)
    torch.testing.assert_close(got, tile_scores(q, k, q_layout, kv_layout, **settings), atol=1e-6, rtol=1e-4)
