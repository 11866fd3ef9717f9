import pytest
import torch
import torch.nn.functional as F

from fastdit.selectors import pyramid
from fastdit.selectors.own_tiles import OwnTiles, own_tiles
from fastdit.selectors.pyramid_keys import pyramid_keys
from fastdit.selectors.pyramid_statistics import node_errors
from fastdit_kernels import TileLayout, block_mass, block_sparse_attention, select_tiles


def select(*given, budget, **settings):
    (mask,) = pyramid.select(*given, budgets=[budget], **settings)
    return mask


def layouts(length, q_tile=32, kv_tile=16, levels=4, text=0):
    segments = (length, text) if text else (length,)
    return TileLayout(segments, q_tile), TileLayout(segments, kv_tile, levels)


def random_qkv(length, generator, batch=1, heads=2, dim=12, sharpness=2.0):
    q, k, v = (torch.randn(batch, heads, length, dim, generator=generator) for _ in range(3))
    return q * sharpness, k, v


def relative_error(out, exact):
    return (out - exact).norm() / exact.norm()


@pytest.mark.parametrize("levels", [1, 2, 4, 6])
@pytest.mark.parametrize("kv_tile", [8, 16, 40])
@pytest.mark.parametrize("length", [7, 128, 203])
def test_every_level_and_tile_size_gives_a_valid_mask_within_budget(rng, length, kv_tile, levels):
    q, k, v = random_qkv(length, rng)
    q_layout, kv_layout = layouts(length, kv_tile=kv_tile, levels=levels)
    for budget in (1, 3):
        mask = select(q, k, v, q_layout, kv_layout, budget=budget)
        mask.validate()
        assert mask.counts.min() >= 1
        assert mask.counts.max() <= budget


def test_equal_keys_within_groups_reproduce_dense_attention(rng):
    """Runs of 8 equal tokens need an eighth of the tiles, ragged tail included."""
    q = torch.randn(1, 2, 250, 16, generator=rng)
    k, v = (torch.randn(1, 2, 32, 16, generator=rng).repeat_interleave(8, 2)[:, :, :250] for _ in range(2))
    q_layout, kv_layout = layouts(250)
    mask = select(q, k, v, q_layout, kv_layout, budget=2)
    assert mask.counts.max() <= 2
    assert torch.allclose(block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


def test_full_budget_is_dense_attention(rng):
    q, k, v = random_qkv(100, rng)
    mask = select(q, k, v, *layouts(100), budget=7)
    assert torch.allclose(block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


def test_own_tiles_are_kept_at_level_0_even_past_the_budget(rng):
    q, k, v = random_qkv(203, rng)
    q_layout, kv_layout = layouts(203)
    own = own_tiles(q_layout, TileLayout((203,), 16), q.device)
    forced = OwnTiles.of(q_layout, kv_layout, torch.tensor([True, False]))
    assert forced.most == 3
    mask = select(q, k, v, q_layout, kv_layout, budget=1, own=forced)
    mask.validate()
    first = mask.to_dense()[0, 0, :, : kv_layout.num_tiles]
    assert torch.equal(first, own)
    assert (mask.counts[0, 0] == own.sum(1)).all()
    assert (mask.counts[0, 1] == 1).all()


def test_text_is_kept_by_all_and_sees_all(rng):
    q, k, v = random_qkv(150 + 21, rng)
    q_layout, kv_layout = layouts(150, text=21)
    mask = select(q, k, v, q_layout, kv_layout, budget=5)
    mask.validate()
    dense = mask.to_dense()[..., : kv_layout.num_tiles]
    assert dense[..., 10:].all()
    assert dense[:, :, 5].all()  # the text's own query tile
    assert mask.counts[:, :, :5].max() <= 5
    out, exact = block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(out[:, :, 150:], exact[:, :, 150:], atol=1e-5)


def test_batch_entries_and_heads_do_not_mix(rng):
    q, k, v = random_qkv(130, rng, batch=2, heads=3)
    together = select(q, k, v, *layouts(130), budget=3)
    for batch in range(2):
        for head in range(3):
            one = [x[batch : batch + 1, head : head + 1] for x in (q, k, v)]
            alone = select(*one, *layouts(130), budget=3)
            assert torch.equal(alone.to_dense()[0, 0], together.to_dense()[batch, head])


def test_small_chunks_give_the_same_mask(rng, monkeypatch):
    q, k, v = random_qkv(130, rng, batch=2)
    whole = select(q, k, v, *layouts(130), budget=3)
    monkeypatch.setattr("fastdit.selectors.pyramid.CPU_WORKSPACE_BYTES", 1)
    parts = select(q, k, v, *layouts(130), budget=3)
    assert torch.equal(whole.to_dense(), parts.to_dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(rng, dtype):
    q, k, v = (x.to(dtype) for x in random_qkv(130, rng))
    mask = select(q, k, v, *layouts(130), budget=3)
    mask.validate()
    wide = select(q.double(), k.double(), v.double(), *layouts(130), budget=3)
    agreement = (mask.to_dense() == wide.to_dense()).float().mean()
    assert agreement > 0.95


def test_sampled_keys_survive_a_missed_peak(rng):
    """A key that no sample sees may have any score; the estimates stay finite and the mask valid."""
    q, k, v = random_qkv(128, rng, sharpness=1.0)
    k[:, :, 33] = 40 * q[:, :, 5]
    select(q, k, v, *layouts(128), budget=3, kv_samples=2).validate()
    keys = pyramid_keys(k[0], v[0], layouts(128)[1], 2)
    use, drop = node_errors(q[0, :, [5, 6]], keys, 2, 0.3)
    assert use.isfinite().all()
    assert drop.isfinite().all()


def test_a_planted_tile_is_kept_fine_and_a_flat_region_coarse(rng):
    q, k, v = (0.1 * torch.randn(1, 1, 512, 16, generator=rng) for _ in range(3))
    q[..., 0] += 6
    k[:, :, 96:112, 0] += torch.linspace(2, 6, 16)
    v[:, :, 96:112] = torch.randn(1, 1, 16, 16, generator=rng)
    mask = select(q, k, v, *layouts(512), budget=4)
    dense = mask.to_dense()[0, 0]
    assert dense[:, 6].all()
    assert (mask.coverage()) > 0.5  # four level-0 tiles alone would cover an eighth


def test_the_choice_is_deterministic_and_leaves_the_global_generator_alone(rng):
    q, k, v = random_qkv(130, rng)
    before = torch.get_rng_state()
    first = select(q, k, v, *layouts(130), budget=3)
    second = select(q, k, v, *layouts(130), budget=3)
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(before, torch.get_rng_state())


def test_half_the_error_of_the_best_binary_choice_on_spread_attention(rng):
    """Against the oracle that keeps the truly heaviest tiles: wide, smooth attention over 1024 tokens."""
    waves = torch.randn(1, 2, 1, 16, generator=rng) / 160 * torch.arange(1024.0).view(1, 1, -1, 1)
    q = k = 1.5 * torch.cat([waves.cos(), waves.sin()], 3) + 0.2 * torch.randn(1, 2, 1024, 32, generator=rng)
    v = torch.cat([(waves * 2).cos(), (waves * 2).sin()], 3) + 0.3 * torch.randn(1, 2, 1024, 32, generator=rng)
    exact = F.scaled_dot_product_attention(q, k, v)
    lse = (q @ k.mT / 32**0.5).logsumexp(-1)
    q_layout, kv_layout = layouts(1024, levels=6)
    binary = TileLayout((1024,), 16)
    mass = block_mass(q, k, lse, q_layout, binary)
    for budget in (5, 10, 19):  # of 64: density .08, .15, .3
        oracle = select_tiles(mass, q_layout, binary, max_tiles=budget)
        mask = select(q, k, v, q_layout, kv_layout, budget=budget)
        errors = [relative_error(block_sparse_attention(q, k, v, each), exact) for each in (mask, oracle)]
        assert mask.density() <= oracle.density() + 1e-9
        assert errors[0] < 0.5 * errors[1]


def test_masks_of_several_budgets_are_those_of_one_at_a_time(rng):
    q, k, v = random_qkv(130, rng, heads=3)
    own = OwnTiles.of(*layouts(130), torch.tensor([True, False, True]))
    budgets = [5, [1, 4, 2], 2]
    together = pyramid.select(q, k, v, *layouts(130), budgets=budgets, own=own)
    for budget, mask in zip(budgets, together, strict=True):
        alone = select(q, k, v, *layouts(130), budget=budget, own=own)
        assert torch.equal(mask.indices, alone.indices)
        assert torch.equal(mask.counts, alone.counts)
