"""Orders per head: the pyramid config through `sparse_step`, on heads of known structure."""

import pytest
import torch
import torch.nn.functional as F

from fastdit import AdaptiveConfig, CachedConfig, ConfigError, PyramidConfig, StaticConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.orders import token_order
from fastdit.run_memory import RunMemory
from fastdit.selectors.own_tiles import own_tiles
from fastdit.selectors.score_order import score_order
from fastdit_kernels import TileLayout, block_sparse_attention, gather_tokens

GRID = VideoGrid(frames=6, height=8, width=9)  # 432 tokens
TEXT_FIRST = VideoGrid(frames=6, height=8, width=9, text_length=21, text_first=True)
TEXT_LAST = VideoGrid(frames=6, height=8, width=9, text_length=21)


def make(**settings):
    return PyramidConfig(q_tile=32, kv_tile=16, min_tokens=0, **settings)


def local_and_stripe_heads(grid, generator, dim=32):
    """`[1, S, 2, D]`: head 0 looks around itself, head 1 at hot keys scattered over the video."""
    frame = torch.meshgrid(*(torch.arange(float(n)) for n in (grid.frames, grid.height, grid.width)), indexing="ij")
    places = torch.stack(frame, -1).view(-1, 3)
    waves = torch.randn(dim // 2, 3, generator=generator) / torch.tensor([1.5, 1.5, 1.5])
    local = torch.cat([(places @ waves.T).cos(), (places @ waves.T).sin()], 1) * 2
    hot = torch.rand(grid.video_length, 1, generator=generator) < 0.08
    direction = torch.randn(dim, generator=generator)
    noise = 0.3 * torch.randn(grid.video_length, dim, generator=generator)
    query = torch.stack([local * 3, (direction + noise) * 2], 1)
    key = torch.stack([local, noise + hot * direction], 1)
    value = torch.randn(grid.video_length, 2, dim, generator=generator)
    text = torch.randn(3, grid.text_length, 2, dim, generator=generator)
    parts = [[t, x] if grid.text_first else [x, t] for t, x in zip(text, (query, key, value), strict=True)]
    return [torch.cat(part).unsqueeze(0) for part in parts]


def exact_attention(query, key, value):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def head_errors(out, exact):
    return (out - exact).norm(dim=(1, 3))[0] / exact.norm(dim=(1, 3))[0]


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST, TEXT_LAST])
@pytest.mark.parametrize("order", ["auto", "gilbert", "raster", "space_major", "score"])
def test_full_density_equals_dense_in_every_order(rng, grid, order):
    tensors = local_and_stripe_heads(grid, rng)
    step = sparse_step(*tensors, grid, make(density=1.0, order=order), MaskCache())
    out, mask = step.out, step.mask
    assert mask.density() == pytest.approx(1.0)
    assert torch.allclose(out, exact_attention(*tensors), atol=1e-4)


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST])
def test_auto_gives_each_head_its_order(rng, grid):
    tensors = local_and_stripe_heads(grid, rng)
    exact = exact_attention(*tensors)
    errors = {}
    memory = RunMemory()
    for number, order in enumerate(("auto", "gilbert", "raster", "space_major", "score")):
        config = make(density=0.3, order=order)
        step = sparse_step(*tensors, grid, config, MaskCache(), memory, CallSite(0, number, "cond", 0))
        step.mask.validate()
        errors[order] = head_errors(step.out, exact)
    choice = memory.key_orders.get(
        ("key_order", (0, 0, 0), grid, 2), lambda: pytest.fail("the choice was not remembered")
    )
    assert make().key_orders[choice[1]] == "score"
    assert make().key_orders[choice[0]] != "score"
    best = torch.stack([error for order, error in errors.items() if order != "auto"]).amin(0)
    assert (errors["auto"] <= 1.1 * best).all()
    assert errors["score"][1] < 0.5 * errors["gilbert"][1]
    assert errors["gilbert"][0] < 0.5 * errors["score"][0]


def test_a_remembered_choice_gives_the_same_output(rng):
    tensors = local_and_stripe_heads(TEXT_FIRST, rng)
    memory = RunMemory()
    first, second = (
        sparse_step(*tensors, TEXT_FIRST, make(), MaskCache(), memory, CallSite(0, 0, "cond", step)) for step in (0, 1)
    )
    assert len(memory.key_orders) == 1
    assert torch.equal(first.out, second.out)
    assert torch.equal(first.mask.to_dense(), second.mask.to_dense())


def test_scores_are_asked_only_for_heads_that_settled_on_them(rng, monkeypatch):
    asked = []

    def counting(query, *rest):
        asked.append(query.shape[1])
        return score_order(query, *rest)

    monkeypatch.setattr("fastdit.attend.score_order", counting)
    tensors = local_and_stripe_heads(GRID, rng)
    memory = RunMemory()
    steps = [
        sparse_step(*tensors, GRID, make(density=0.3), MaskCache(), memory, CallSite(0, 0, "cond", step))
        for step in range(2)
    ]
    assert asked == [2, 1]  # all heads try; afterwards the stripe head alone
    assert torch.equal(steps[0].out, steps[1].out)
    local = [x[:, :, :1] for x in tensors]
    for step in range(2):
        sparse_step(*local, GRID, make(density=0.3), MaskCache(), memory, CallSite(0, 1, "cond", step))
    assert asked == [2, 1, 1]  # the try of the second layer, whose one head chose another order


def test_cached_masks_keep_the_order_they_were_built_in(rng):
    """Keys by score are in another order in every step; a mask that is reused speaks of the order of its own."""
    first, later = local_and_stripe_heads(GRID, rng), local_and_stripe_heads(GRID, rng)
    config = CachedConfig(source=make(density=0.3), min_recall=None)
    memory = RunMemory()
    built, reused = (
        sparse_step(*tensors, GRID, config, MaskCache(), memory, CallSite(0, 0, "cond", step))
        for step, tensors in enumerate((first, later))
    )
    assert (built.reuse.built, reused.reuse.built) == (True, False)
    assert torch.equal(built.mask.to_dense(), reused.mask.to_dense())
    order = memory.masks._entries[0, 0, "cond", 0].order
    assert torch.equal(reused.key, gather_tokens(later[1].transpose(1, 2), order.long()))
    # The stripes of the later tensors lie elsewhere; in the order of the first ones the local head still fits.
    assert head_errors(reused.out, exact_attention(*later))[0] < 0.5


def test_a_stale_head_is_built_anew_in_its_own_order(rng):
    first, later = local_and_stripe_heads(GRID, rng), local_and_stripe_heads(GRID, rng)
    config = CachedConfig(source=make(density=0.3), check_every=1, min_recall=0.95, sample_tiles=4)
    memory = RunMemory()
    refreshed = []
    for step, tensors in enumerate((first, later, later)):
        result = sparse_step(*tensors, GRID, config, MaskCache(), memory, CallSite(0, 0, "cond", step))
        refreshed.append(result.reuse.refreshed_heads)
        result.mask.validate()
    assert refreshed[:2] == [0, 0]
    assert refreshed[2] >= 1


def test_batch_entries_share_the_order_but_not_the_mask(rng):
    tensors = [torch.cat(pair) for pair in zip(*(local_and_stripe_heads(GRID, rng) for _ in range(2)), strict=True)]
    step = sparse_step(*tensors, GRID, make(density=0.3), MaskCache())
    out, mask = step.out, step.mask
    mask.validate()
    assert mask.indices.shape[0] == 2
    assert not torch.equal(mask.to_dense()[0], mask.to_dense()[1])
    assert (head_errors(out[1:], exact_attention(*tensors)[1:]) < 0.6).all()


def test_the_own_tile_is_kept_where_the_order_is_shared(rng):
    q, v = (torch.randn(1, 2, 432, 16, generator=rng) for _ in range(2))
    own = own_tiles(TileLayout((432,), 32), TileLayout((432,), 16), q.device)
    shares = torch.tensor([True, False])
    mask, _ = make(density=0.1, keep_own_tile=True).select_reordered(q, -5 * q, v, GRID, shares, measure=False)
    kept = mask.to_dense()[0, :, :, :27]
    assert (kept[0] & own).sum() == own.sum()
    assert (kept[1] & own).sum() < own.sum()
    assert mask.counts.max() <= 3


def test_score_order_is_a_permutation_with_hot_keys_first_and_text_last(rng):
    query, key, _ = (x.transpose(1, 2) for x in local_and_stripe_heads(TEXT_FIRST, rng))
    order = score_order(query, key, TEXT_FIRST, 50)
    assert order.shape == (2, TEXT_FIRST.length)
    assert torch.equal(order.sort(1).values, torch.arange(TEXT_FIRST.length).expand(2, -1))
    assert torch.equal(order[:, -21:], token_order(TEXT_FIRST, "raster")[-21:].expand(2, -1))
    heat = (query[0, 1, 21:].mean(0) @ key[0, 1].T)[order[1, :432]]
    assert heat[:20].mean() > heat[216:].mean() + 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.5}, "density"),
        ({"num_levels": 0}, "num_levels"),
        ({"num_levels": 9}, "at most 8"),
        ({"q_samples": 0}, "q_samples"),
        ({"kv_samples": 0}, "kv_samples"),
        ({"order": "random"}, "'score', 'auto'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PyramidConfig(**settings)


def adaptive(**settings):
    return AdaptiveConfig(q_tile=32, kv_tile=16, min_tokens=0, **settings)


def test_methods_without_key_orders_say_so():
    assert StaticConfig(pattern="dense").key_orders == ()
    with pytest.raises(ConfigError, match="order='score'"):
        StaticConfig(pattern="dense", order="score")
    with pytest.raises(ConfigError, match="order of the queries"):
        StaticConfig(pattern="dense").select_reordered(None, None, None, GRID, None, measure=False)


def test_adaptive_orders_keys_alone_only_where_asked():
    assert adaptive(order="raster").key_orders == ()
    assert adaptive(order="raster").query_order == "raster"
    assert adaptive(order="score").key_orders == ("score",)
    assert adaptive(order="auto").query_order == "gilbert"


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST])
@pytest.mark.parametrize("complement", ["none", "auto"])
def test_adaptive_auto_gives_each_head_its_order(rng, grid, complement):
    tensors = local_and_stripe_heads(grid, rng)
    memory = RunMemory()
    config = adaptive(density=0.3, order="auto", complement=complement)
    first, second = (
        sparse_step(*tensors, grid, config, MaskCache(), memory, CallSite(0, 0, "cond", step)) for step in (0, 1)
    )
    first.mask.validate()
    assert torch.equal(first.mask.to_dense(), second.mask.to_dense())
    assert torch.equal(first.out, second.out)
    choice = memory.key_orders.get(
        ("key_order", (0, 0, 0), grid, 2), lambda: pytest.fail("the choice was not remembered")
    )
    assert config.key_orders[choice[1]] == "score"
    assert config.key_orders[choice[0]] != "score"
    exact = exact_attention(*tensors)
    plain = sparse_step(*tensors, grid, adaptive(density=0.3, order="gilbert"), MaskCache())
    assert head_errors(first.out, exact)[1] < 0.5 * head_errors(plain.out, exact)[1]
    assert head_errors(first.out, exact)[0] < 0.2  # .5 in raster order


@pytest.mark.parametrize("order", ["auto", "score"])
def test_adaptive_at_full_density_equals_dense_in_every_order(rng, order):
    tensors = local_and_stripe_heads(TEXT_FIRST, rng)
    step = sparse_step(*tensors, TEXT_FIRST, adaptive(density=1.0, order=order, complement="auto"), MaskCache())
    assert torch.allclose(step.out, exact_attention(*tensors), atol=1e-4)


def test_the_own_tile_of_adaptive_is_kept_where_the_order_is_shared(rng):
    q, v = (torch.randn(1, 2, 432, 16, generator=rng) for _ in range(2))
    own = own_tiles(TileLayout((432,), 32), TileLayout((432,), 16), q.device)
    shares = torch.tensor([True, False])
    mask, _ = adaptive(density=0.1).select_reordered(q, -5 * q, v, GRID, shares, measure=False)
    kept = mask.to_dense()[0]
    assert (kept[0] & own).sum() == own.sum()
    assert (kept[1] & own).sum() < own.sum()


def test_the_measured_error_is_that_of_the_sampled_rows(rng):
    q, k, v = (torch.randn(1, 2, 432, 16, generator=rng) for _ in range(3))
    shares = torch.ones(2, dtype=torch.bool)
    for complement in ("none", "all"):
        config = adaptive(density=0.3, complement=complement)
        mask, error = config.select_reordered(q, k, v, GRID, shares, measure=True)
        rows = (torch.arange(13)[:, None] * 32 + torch.tensor([8, 24])).flatten()
        rows = torch.cat([rows, 13 * 32 + torch.tensor([4, 12])])  # the last tile has 16 rows
        exact = F.scaled_dot_product_attention(q, k, v)[:, :, rows]
        out = block_sparse_attention(q, k, v, mask)[:, :, rows]
        torch.testing.assert_close(error, ((out - exact).norm(dim=-1) / exact.norm(dim=-1)).mean(2))


def test_auto_complement_takes_for_each_head_what_errs_less(rng):
    q, k, v = (torch.randn(1, 2, 432, 16, generator=rng) for _ in range(3))
    q[:, 1], k[:, 1] = 4 * k[:, 1], 2 * k[:, 1]  # each query looks at its own key alone
    shares = torch.ones(2, dtype=torch.bool)
    masks = {}
    for name in ("none", "all", "auto"):
        masks[name], _ = adaptive(density=0.3, complement=name).select_reordered(q, k, v, GRID, shares, measure=False)
    dense = {name: mask.to_dense()[0] for name, mask in masks.items()}
    assert torch.equal(dense["auto"][0], dense["all"][0])
    assert torch.equal(dense["auto"][1, :, :27], dense["none"][1])
    assert not dense["auto"][1, :, 27:].any()
