import pytest
import torch

from fastdit import AdaptiveConfig, ConfigError, VideoGrid
from fastdit.selectors.adaptive import self_similarity
from fastdit.selectors.own_tiles import own_tiles
from fastdit_kernels import TileLayout, block_sparse_attention, tile_means, tile_scores

GRID = VideoGrid(frames=4, height=8, width=9)  # 288 tokens


def random_qk(length, generator, heads=2, dim=16):
    return (torch.randn(1, heads, length, dim, generator=generator) for _ in range(2))


def make(**settings):
    return AdaptiveConfig(q_tile=32, kv_tile=16, min_tokens=0, **settings)


def test_tile_means_leave_padding_out(rng):
    x = torch.randn(1, 1, 37, 3, generator=rng)
    means = tile_means(x, TileLayout((37,), 16))
    assert torch.allclose(means[0, 0, 2], x[0, 0, 32:].mean(0), atol=1e-6)


def test_mass_is_exact_where_tiles_are_uniform(rng):
    q_layout, kv_layout = TileLayout((61,), 16), TileLayout((61,), 8)
    q = torch.randn(1, 2, 4, 16, generator=rng).repeat_interleave(16, 2)[:, :, :61]
    k = torch.randn(1, 2, 8, 16, generator=rng).repeat_interleave(8, 2)[:, :, :61]
    exact = (q @ k.mT / 4).softmax(-1)
    summed = torch.stack([part.sum(-1) for part in exact[:, :, ::16].split(8, -1)], -1)
    assert torch.allclose(tile_scores(q, k, q_layout, kv_layout), summed, atol=1e-6)


def test_density_is_the_share_asked_for(rng):
    q, k = random_qk(GRID.length, rng)
    for density in (0.2, 0.5, 1.0):
        mask = make(density=density).select(q, k, k, GRID)
        mask.validate()
        assert mask.density() == pytest.approx(density, abs=1 / 18 / 2)


def test_floor_and_cap_bound_every_row(rng):
    q, k = random_qk(GRID.length, rng)
    sharp = make(top_p=0.9, min_density=0.2, max_density=0.4).select(q * 30, k, k, GRID)
    assert sharp.counts.min() >= round(0.2 * 18)
    flat = make(top_p=1.0, min_density=0.0, max_density=0.4).select(q * 0, k, k, GRID)
    assert (flat.counts == round(0.4 * 18)).all()


def test_top_p_keeps_just_enough_mass(rng):
    q, k = random_qk(GRID.length, rng)
    q = q * 4
    config = make(top_p=0.7, min_density=0.0, max_density=1.0)
    mask = config.select(q, k, k, GRID)
    q_layout, kv_layout = TileLayout((288,), 32), TileLayout((288,), 16)
    mass = tile_scores(q, k, q_layout, kv_layout)
    kept = torch.where(mask.to_dense(), mass, 0).sum(-1)
    assert (kept >= 0.7 - 1e-5).all()
    lightest = torch.where(mask.to_dense() & ~own_tiles(q_layout, kv_layout, q.device), mass, 2).amin(-1)
    free = mask.counts > 2  # rows that hold more than their own two tiles
    assert (kept - lightest < 0.7 + 1e-5)[free].all()


def test_more_top_p_means_more_tiles(rng):
    q, k = random_qk(GRID.length, rng)
    densities = [
        make(top_p=p, min_density=0, max_density=1.0).select(q * 4, k, k, GRID).density() for p in (0.3, 0.6, 0.9)
    ]
    assert densities == sorted(densities)
    assert densities[0] < densities[-1]


def test_the_own_tile_is_always_kept(rng):
    q, _ = random_qk(GRID.length, rng)
    mask = make(density=0.0).select(q, -q, -q, GRID)  # the own tile has the least score of all
    own = own_tiles(TileLayout((288,), 32), TileLayout((288,), 16), q.device)
    assert (mask.to_dense() & own).sum() == 2 * own.sum()


def test_text_is_always_kept_and_sees_everything(rng):
    grid = VideoGrid(frames=4, height=8, width=9, text_length=21)
    q, k = random_qk(grid.length, rng)
    mask = make(density=0.2).select(q, k, k, grid)
    dense = mask.to_dense()
    assert dense.shape[2:] == (9 + 1, 18 + 2)
    assert dense[..., 18:].all()
    assert dense[:, :, 9:].all()
    assert not dense[:, :, :9, :18].all()


def test_text_queries_match_dense_attention(rng):
    grid = VideoGrid(frames=4, height=8, width=9, text_length=21)
    q, k = random_qk(grid.length, rng)
    out = block_sparse_attention(q, k, k, make(density=0.1).select(q, k, k, grid))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert torch.allclose(out[:, :, -21:], exact[:, :, -21:], atol=1e-5)


def test_a_planted_block_is_found(rng):
    q, k = torch.randn(1, 1, 288, 16, generator=rng) * 0.1, torch.randn(1, 1, 288, 16, generator=rng) * 0.1
    q[:, :, 64:96, 0] += 6
    k[:, :, 224:240, 0] += 6
    mask = make(top_p=0.6, min_density=0, max_density=0.3).select(q, k, k, GRID)
    assert mask.to_dense()[0, 0, 2, 14]


def by_top_k(scores, own, count):
    """The forced tiles and then the heaviest, row by row."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(scores.shape[2]):
        for head in range(scores.shape[1]):
            forced = own[row].nonzero().flatten().tolist()
            rest = [i for i in scores[0, head, row].argsort(descending=True).tolist() if i not in forced]
            keep[0, head, row, (forced + rest)[: max(count, len(forced))]] = True
    return keep


@pytest.mark.parametrize(
    "settings", [{"estimator": "sampled", "samples": 2}, {"estimator": "antidiagonal", "stride": 4}]
)
def test_the_named_estimator_ranks_the_tiles(settings, rng):
    q, k = random_qk(GRID.length, rng)
    q = q * 3
    mask = make(density=0.4, **settings).select(q, k, k, GRID)
    layouts = TileLayout((288,), 32), TileLayout((288,), 16)
    named = {"estimator": settings["estimator"]}
    if "samples" in settings:
        named |= {"q_samples": 2, "kv_samples": 2}
    else:
        named |= {"stride": 4}
    scores = tile_scores(q, k, *layouts, **named)
    expected = by_top_k(scores, own_tiles(*layouts, q.device), round(0.4 * 18))
    assert torch.equal(mask.to_dense(), expected)
    assert not torch.equal(mask.to_dense(), make(density=0.4).select(q, k, k, GRID).to_dense())


def test_rows_see_a_peak_that_means_miss(rng):
    q, k = (0.1 * torch.randn(1, 1, 288, 16, generator=rng) for _ in range(2))
    direction = torch.randn(16, generator=rng)
    q = q + direction
    k[:, :, 200] += 3 * direction
    k[:, :, 201:208] -= 3 * direction  # the other members hide it in the mean of tile 12
    far = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8])
    plain, exact = (
        make(density=0.2, estimator=name, samples=2).select(q, k, k, GRID).to_dense()[0, 0, far, 12]
        for name in ("mean", "rows")
    )
    assert exact.all()
    assert not plain.any()


def test_self_similarity_is_the_mean_cosine_of_pairs(rng):
    x = torch.randn(1, 2, 37, 5, generator=rng)
    got = self_similarity(x, TileLayout((30, 7), 8))
    for number, part in enumerate([*x[:, :, :30].split(8, 2), x[:, :, 30:]]):
        pairs = torch.nn.functional.cosine_similarity(part.unsqueeze(2), part.unsqueeze(3), dim=-1)
        torch.testing.assert_close(got[..., number], pairs.mean((2, 3)))


def test_tiles_of_unlike_tokens_are_always_kept(rng):
    direction = torch.randn(16, generator=rng)
    q, k = (direction + 0.05 * torch.randn(1, 1, 288, 16, generator=rng) for _ in range(2))
    k = k + 4 * torch.randn(18, 16, generator=rng).repeat_interleave(16, 0)  # tiles differ, their members do not
    q[:, :, 64:96] = torch.randn(32, 16, generator=rng)
    k[:, :, 160:176] = 9 * torch.randn(16, 16, generator=rng)
    plain, gated = (make(density=0.2, min_similarity=gate).select(q, k, k, GRID) for gate in (None, 0.5))
    gated.validate()
    expected = plain.to_dense().clone()
    assert not expected[0, 0, :, 10].all()
    keep = gated.to_dense()[0, 0]
    assert keep[2].all()
    assert keep[:, 10].all()
    assert (keep.sum(-1)[[row for row in range(9) if row != 2]] < 18).all()


def test_unlike_key_tiles_take_no_part_in_the_estimate(rng):
    q = torch.randn(1, 1, 288, 16, generator=rng)
    k = torch.randn(18, 16, generator=rng).repeat_interleave(16, 0).view(1, 1, 288, 16)
    k[:, :, 160:176] = 800 * q.mean(2, keepdim=True) + 80 * torch.randn(16, 16, generator=rng)
    settings = {"top_p": 0.5, "min_density": 0.0, "max_density": 1.0}
    q = q.mean(2, keepdim=True) + 0.01 * q
    gated = make(min_similarity=0.6, **settings).select(q, k, k, GRID).to_dense()[0, 0]
    layouts = TileLayout((288,), 32), TileLayout((288,), 16)
    scores = tile_scores(q, k, *layouts)[0, 0]
    scores[:, 10] = 0
    scores = scores / scores.sum(-1, keepdim=True)
    assert gated[:, 10].all()
    assert (torch.where(gated, scores, 0).sum(-1) >= 0.5 - 1e-5).all()


def test_settings_of_the_estimator_are_checked():
    for settings, message in (
        ({"estimator": "odd"}, "estimator='odd'"),
        ({"samples": 0}, "samples=0"),
        ({"min_similarity": 1.5}, "min_similarity=1.5"),
        ({"estimator": "antidiagonal", "stride": 12}, "divisor of both"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**settings)
