"""The selection kernel in the Triton interpreter, against the sorting twin."""

import pytest
import torch

from fastdit_kernels import KernelUnavailableError, TileLayout, select_tiles

Q, KV = TileLayout((40,), 16), TileLayout((70,), 4)  # 3 query tiles, 18 key tiles


def masses(generator, grain=64):
    """Multiples of 1/64 that sum to one: many ties, and sums without rounding."""
    parts = torch.randint(0, KV.num_tiles, (1, 1, Q.num_tiles, grain), generator=generator)
    return torch.nn.functional.one_hot(parts, KV.num_tiles).sum(3).float() / grain


def assert_same(scores, **settings):
    got = select_tiles(scores, Q, KV, implementation="triton", **settings)
    expected = select_tiles(scores, Q, KV, implementation="torch", **settings)
    assert torch.equal(got.counts, expected.counts)
    assert torch.equal(got.indices, expected.indices)


@pytest.mark.parametrize("top_p", [None, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("bounds", [(0, 18), (3, 6)])
def test_masses_with_ties(top_p, bounds, rng):
    scores = masses(rng)
    forced = torch.rand(Q.num_tiles, KV.num_tiles, generator=rng) < 0.2
    forced[1] = True
    for pinned, most in ((None, None), (forced, None), (forced, 8), (forced, 18)):
        # With 8 the second row has more than was promised.
        settings = {"min_tiles": bounds[0], "max_tiles": bounds[1], "forced": pinned, "max_forced": most}
        got, expected = (
            select_tiles(scores, Q, KV, top_p=top_p, implementation=name, **settings) for name in ("triton", "torch")
        )
        enough = torch.ones(Q.num_tiles, dtype=torch.bool)
        enough[1] = most != 8
        assert torch.equal(got.counts, expected.counts)
        assert torch.equal(got.indices[:, :, enough], expected.indices[:, :, enough])


def test_logits_of_any_sign(rng):
    scores = torch.randn(1, 2, Q.num_tiles, KV.num_tiles, generator=rng)
    scores[..., ::3] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0, -0.0])
    scores[0, 0, 0] = -torch.inf
    assert_same(scores.transpose(0, 1), max_tiles=7)


def test_softmax_masses_keep_enough(rng):
    scores = (3 * torch.randn(1, 2, Q.num_tiles, KV.num_tiles, generator=rng)).softmax(-1)
    mask = select_tiles(scores, Q, KV, top_p=0.8, max_tiles=18, implementation="triton")
    kept = torch.where(mask.to_dense(), scores, 0)
    assert (kept.sum(-1) >= 0.8 - 1e-5).all()
    assert (kept.sum(-1) - torch.where(kept > 0, kept, 2).amin(-1) < 0.8 + 1e-5).all()


def test_double_scores_are_refused_by_name():
    with pytest.raises(KernelUnavailableError, match="float64"):
        select_tiles(torch.zeros(1, 1, 3, 18).double(), Q, KV, max_tiles=2, implementation="triton")
