import pytest
import torch
import torch.nn.functional as F

from fastdit.selectors.adaptive import own_tiles
from fastdit.selectors.pyramid import held_out_samples, select
from fastdit_kernels import TileLayout, block_mass, block_sparse_attention, select_tiles, stratified_rows


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
        mask, error = select(q, k, v, q_layout, kv_layout, budget=budget)
        mask.validate()
        assert mask.counts.min() >= 1
        assert mask.counts.max() <= budget
        assert error.shape == (1, 2)
        assert error.isfinite().all()


def test_the_stated_error_is_that_of_rows_the_choice_was_not_fitted_to(rng):
    """What `select` says is what attention with its mask makes on those rows."""
    for text in (0, 13):
        q, k, v = random_qkv(203 + text, rng)
        q_layout, kv_layout = layouts(203, q_tile=7, text=text)  # 203 = 29 * 7
        mask, error = select(q, k, v, q_layout, kv_layout, budget=4, q_samples=6)
        rows = stratified_rows(TileLayout((203,), 7), held_out_samples(6))
        video = block_sparse_attention(q, k, v, mask)[:, :, rows]
        exact = F.scaled_dot_product_attention(q, k, v)[:, :, rows]
        true = ((video - exact).norm(dim=3) / exact.norm(dim=3)).mean(2)
        assert torch.allclose(error, true, atol=1e-5)


@pytest.mark.parametrize("samples", range(1, 17))
def test_held_out_rows_are_other_rows(samples):
    layout = TileLayout((384,), 128)
    fitted = set(stratified_rows(layout, samples).tolist())
    assert fitted.isdisjoint(stratified_rows(layout, held_out_samples(samples)).tolist())


def test_a_choice_that_fits_the_sampled_rows_alone_is_not_called_good(rng):
    """Of every query tile the sampled rows look at the first half of the keys, all others at the second half."""
    q, k, v = (0.1 * torch.randn(1, 1, 256, 12, generator=rng) for _ in range(3))
    q[..., 0] = -8
    q[:, :, stratified_rows(TileLayout((256,), 32), 4), 0] = 8
    k[..., 0] = torch.where(torch.arange(256) < 128, 4.0, -4.0)
    v += torch.randn(1, 1, 256, 12, generator=rng)
    _, error = select(q, k, v, *layouts(256), budget=8)
    assert error.min() > 0.9


def test_equal_keys_within_groups_reproduce_dense_attention(rng):
    """Runs of 8 equal tokens need an eighth of the tiles, ragged tail included."""
    q = torch.randn(1, 2, 250, 16, generator=rng)
    k, v = (torch.randn(1, 2, 32, 16, generator=rng).repeat_interleave(8, 2)[:, :, :250] for _ in range(2))
    q_layout, kv_layout = layouts(250)
    mask, error = select(q, k, v, q_layout, kv_layout, budget=2)
    assert mask.counts.max() <= 2
    assert error.max() < 1e-5
    assert torch.allclose(block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


def test_full_budget_is_dense_attention(rng):
    q, k, v = random_qkv(100, rng)
    mask, error = select(q, k, v, *layouts(100), budget=7)
    assert error.max() < 1e-5
    assert torch.allclose(block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


def test_forced_tiles_are_kept_at_level_0_even_past_the_budget(rng):
    q, k, v = random_qkv(203, rng)
    q_layout, kv_layout = layouts(203)
    own = own_tiles(q_layout, TileLayout((203,), 16), q.device)
    forced = torch.stack([own, torch.zeros_like(own)])  # of the first head alone
    mask, _ = select(q, k, v, q_layout, kv_layout, budget=1, forced=forced, max_forced=3)
    mask.validate()
    first = mask.to_dense()[0, 0, :, : kv_layout.num_tiles]
    assert torch.equal(first, own)
    assert (mask.counts[0, 0] == own.sum(1)).all()
    assert (mask.counts[0, 1] == 1).all()


def test_text_is_kept_by_all_and_sees_all(rng):
    q, k, v = random_qkv(150 + 21, rng)
    q_layout, kv_layout = layouts(150, text=21)
    mask, _ = select(q, k, v, q_layout, kv_layout, budget=5)
    mask.validate()
    dense = mask.to_dense()[..., : kv_layout.num_tiles]
    assert dense[..., 10:].all()
    assert dense[:, :, 5].all()  # the text's own query tile
    assert mask.counts[:, :, :5].max() <= 5
    out, exact = block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(out[:, :, 150:], exact[:, :, 150:], atol=1e-5)


def test_batch_entries_and_heads_do_not_mix(rng):
    q, k, v = random_qkv(130, rng, batch=2, heads=3)
    together, errors = select(q, k, v, *layouts(130), budget=3)
    for batch in range(2):
        for head in range(3):
            one = [x[batch : batch + 1, head : head + 1] for x in (q, k, v)]
            alone, error = select(*one, *layouts(130), budget=3)
            assert torch.equal(alone.to_dense()[0, 0], together.to_dense()[batch, head])
            assert torch.allclose(error[0, 0], errors[batch, head], atol=1e-5)


def test_small_chunks_give_the_same_mask(rng, monkeypatch):
    q, k, v = random_qkv(130, rng, batch=2)
    whole, error = select(q, k, v, *layouts(130), budget=3)
    monkeypatch.setattr("fastdit.selectors.pyramid.CPU_WORKSPACE_BYTES", 1)
    parts, error_of_parts = select(q, k, v, *layouts(130), budget=3)
    assert torch.equal(whole.to_dense(), parts.to_dense())
    assert torch.allclose(error, error_of_parts, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(rng, dtype):
    q, k, v = (x.to(dtype) for x in random_qkv(130, rng))
    mask, error = select(q, k, v, *layouts(130), budget=3)
    mask.validate()
    wide, _ = select(q.double(), k.double(), v.double(), *layouts(130), budget=3)
    agreement = (mask.to_dense() == wide.to_dense()).float().mean()
    assert agreement > 0.95
    assert error.isfinite().all()


def test_sampled_keys_survive_a_missed_peak(rng):
    """A key that no sample sees may have any score; the estimates stay finite and the mask valid."""
    q, k, v = random_qkv(128, rng, sharpness=1.0)
    k[:, :, 33] = 40 * q[:, :, 5]
    mask, error = select(q, k, v, *layouts(128), budget=3, kv_samples=2)
    mask.validate()
    assert error.isfinite().all()


def test_a_planted_tile_is_kept_fine_and_a_flat_region_coarse(rng):
    q, k, v = (0.1 * torch.randn(1, 1, 512, 16, generator=rng) for _ in range(3))
    q[..., 0] += 6
    k[:, :, 96:112, 0] += torch.linspace(2, 6, 16)
    v[:, :, 96:112] = torch.randn(1, 1, 16, 16, generator=rng)
    mask, _ = select(q, k, v, *layouts(512), budget=4)
    dense = mask.to_dense()[0, 0]
    assert dense[:, 6].all()
    assert (mask.coverage()) > 0.5  # four level-0 tiles alone would cover an eighth


def test_the_choice_is_deterministic_and_leaves_the_global_generator_alone(rng):
    q, k, v = random_qkv(130, rng)
    before = torch.get_rng_state()
    first, _ = select(q, k, v, *layouts(130), budget=3)
    second, _ = select(q, k, v, *layouts(130), budget=3)
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
        mask, _ = select(q, k, v, q_layout, kv_layout, budget=budget)
        errors = [relative_error(block_sparse_attention(q, k, v, each), exact) for each in (mask, oracle)]
        assert mask.density() <= oracle.density() + 1e-9
        assert errors[0] < 0.5 * errors[1]
