"""Orders per head: the pyramid config through `sparse_step`, on heads of known structure."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastdit import AdaptiveConfig, CachedConfig, ConfigError, PyramidConfig, StaticConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.key_orders import on_device, order_maker
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.order_trials import trial_errors
from fastdit.orders import token_order
from fastdit.run_memory import RunMemory
from fastdit.selectors.own_tiles import own_tiles
from fastdit.selectors.score_order import score_order
from fastdit_kernels import TileLayout, block_sparse_attention, gather_tokens, invert_order

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
    choice = memory.orders.get(("orders", (0, 0, 0, 0), grid, 2), lambda: pytest.fail("the choice was not remembered"))
    assert make().order_pairs[choice[1]] == ("gilbert", "score")
    assert make().order_pairs[choice[0]][1] != "score"
    best = torch.stack([error for order, error in errors.items() if order != "auto"]).amin(0)
    assert (errors["auto"] <= 1.1 * best + 0.01).all()
    assert errors["score"][1] < 0.5 * errors["gilbert"][1]
    assert errors["gilbert"][0] < 0.5 * errors["score"][0]


def test_a_remembered_choice_gives_the_same_output(rng):
    tensors = local_and_stripe_heads(TEXT_FIRST, rng)
    memory = RunMemory()
    first, second = (
        sparse_step(*tensors, TEXT_FIRST, make(shift_tiles=False), MaskCache(), memory, CallSite(0, 0, "cond", step))
        for step in (0, 1)
    )
    assert len(memory.orders) == 1
    assert torch.equal(first.out, second.out)
    assert torch.equal(first.mask.to_dense(), second.mask.to_dense())


def test_scores_are_asked_only_for_heads_that_settled_on_them(rng, monkeypatch):
    asked = []

    def counting(query, *rest):
        asked.append(query.shape[1])
        return score_order(query, *rest)

    monkeypatch.setattr("fastdit.key_orders.score_order", counting)
    tensors = local_and_stripe_heads(GRID, rng)
    memory, config = RunMemory(), make(density=0.3, shift_tiles=False)
    steps = [
        sparse_step(*tensors, GRID, config, MaskCache(), memory, CallSite(0, 0, "cond", step)) for step in range(2)
    ]
    assert asked == [2, 1, 1]  # all heads try; afterwards the stripe head alone
    assert torch.equal(steps[0].out, steps[1].out)
    local = [x[:, :, :1] for x in tensors]
    for step in range(2):
        sparse_step(*local, GRID, make(density=0.3), MaskCache(), memory, CallSite(0, 1, "cond", step))
    assert asked == [2, 1, 1, 1]  # the try of the second layer, whose one head chose another order


@pytest.mark.parametrize("cached", [False, True])
def test_given_orders_are_taken_and_nothing_is_tried(rng, monkeypatch, cached):
    tensors, memory, site, tried = local_and_stripe_heads(TEXT_FIRST, rng), RunMemory(), CallSite(0, 0, "cond", 0), []
    config = make(density=0.3)
    config = CachedConfig(source=config, min_recall=None) if cached else config
    monkeypatch.setattr("fastdit.key_orders.trial_errors", lambda *args: tried.append(1) or trial_errors(*args))

    def out(memory, orders=None):
        return sparse_step(*tensors, TEXT_FIRST, config, MaskCache(), memory, replace(site, orders=orders)).out

    settled = out(memory)
    assert tried == [1]
    choice = memory.orders.get(("orders", (0, 0, 0, 0), TEXT_FIRST, 2), lambda: pytest.fail("nothing was remembered"))
    pairs = tuple(config.order_pairs[number] for number in choice)
    assert pairs[0] != pairs[1]
    assert torch.equal(out(RunMemory(), pairs), settled)
    other = out(RunMemory(), pairs[::-1])
    assert tried == [1]
    # Both heads take what they are given, be it bad.
    assert (head_errors(other, settled) > 0.1).all()
    # A head that is given none settles its own.
    assert torch.equal(out(RunMemory(), (None, pairs[1])), settled)
    assert tried == [1, 1]


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


def test_flags_and_numbers_that_python_takes_for_equal_are_kept_apart():
    cache, device = MaskCache(), torch.device("cpu")
    for values in ([False, True], [0, 1], [False, True]):
        assert torch.equal(on_device(values, device, cache), torch.tensor(values))
        assert on_device(values, device, cache).dtype == torch.tensor(values).dtype


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
    mask = make(density=0.1, keep_own_tile=True).select_reordered(q, -5 * q, v, GRID, shares)
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
    assert StaticConfig(pattern="dense", order="raster").order_pairs == (("raster", "raster"),)
    assert not StaticConfig(pattern="dense", order="raster").orders_heads
    with pytest.raises(ConfigError, match="order='score'"):
        StaticConfig(pattern="dense", order="score")
    with pytest.raises(ConfigError, match="order of the queries"):
        StaticConfig(pattern="dense").select_reordered(None, None, None, GRID, None)


def test_adaptive_orders_keys_alone_only_where_asked():
    assert adaptive(order="raster").order_pairs == (("raster", "raster"),)
    assert adaptive(order="score").order_pairs == (("gilbert", "score"),)
    assert [adaptive(order=name).orders_heads for name in ("raster", "score", "auto")] == [False, True, True]


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST])
@pytest.mark.parametrize("complement", ["none", "auto"])
def test_adaptive_auto_gives_each_head_its_order(rng, grid, complement):
    tensors = local_and_stripe_heads(grid, rng)
    memory = RunMemory()
    config = adaptive(density=0.3, order="auto", complement=complement, shift_tiles=False)
    first, second = (
        sparse_step(*tensors, grid, config, MaskCache(), memory, CallSite(0, 0, "cond", step)) for step in (0, 1)
    )
    first.mask.validate()
    assert torch.equal(first.mask.to_dense(), second.mask.to_dense())
    assert torch.equal(first.out, second.out)
    choice = memory.orders.get(("orders", (0, 0, 0, 0), grid, 2), lambda: pytest.fail("the choice was not remembered"))
    assert config.order_pairs[choice[1]] == ("gilbert", "score")
    assert config.order_pairs[choice[0]][1] != "score"
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
    mask = adaptive(density=0.1).select_reordered(q, -5 * q, v, GRID, shares)
    kept = mask.to_dense()[0]
    assert (kept[0] & own).sum() == own.sum()
    assert (kept[1] & own).sum() < own.sum()


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST, TEXT_LAST])
@pytest.mark.parametrize("method", [AdaptiveConfig, PyramidConfig])
def test_trials_select_for_some_query_tiles_and_measure_the_error_there(rng, grid, method):
    """With 27 whole query tiles, what is selected for the tiles of the trial is what is selected for all."""
    settings = {"complement": "all"} if method is AdaptiveConfig else {"kv_samples": 4}
    config = method(q_tile=16, kv_tile=16, min_tokens=0, density=0.3, order="auto", **settings)
    q, k, v = (torch.randn(2, 2, grid.length, 16, generator=rng) for _ in range(3))
    errors = trial_errors(q, k, v, grid, config, order_maker(q, k, grid, MaskCache()))
    assert errors.shape == (len(config.order_pairs), 2, 2)
    for number, (q_name, k_name) in enumerate(config.order_pairs):
        if k_name == "score":
            continue
        q_order, k_order = (token_order(grid, name) for name in (q_name, k_name))
        tokens = [gather_tokens(x, order) for x, order in ((q, q_order), (k, k_order), (v, k_order))]
        (mask,) = config.candidates(*tokens, grid, torch.full((2,), q_name == k_name))
        out = block_sparse_attention(*tokens, mask, first_order_rows=1)
        exact = gather_tokens(F.scaled_dot_product_attention(q, k, v), q_order)
        # Eight rows of each tile, from the middle of its eighths.
        first = invert_order(q_order)[trial_tokens(grid)] // 16 * 16
        rows = (first[:, None] + torch.arange(1, 16, 2)).flatten()
        assert torch.allclose(errors[number], (out - exact)[:, :, rows].square().mean((2, 3)), atol=1e-5)


def trial_tokens(grid):
    """Sixteen places along the Gilbert curve, one in each of equal parts."""
    parts = [(i + (i + 0.5) * 0.6180339887498949 % 1) * 432 / 16 for i in range(16)]
    return token_order(grid, "gilbert")[torch.tensor(parts).long()]


def test_queries_take_the_order_of_each_head(rng):
    """Head 0 looks along frames, head 1 along time: tiles of whole frames and of whole places."""
    grid = VideoGrid(frames=16, height=8, width=8)
    place = torch.arange(1024)
    tensors = []
    for scale in (6.0, 1.0):
        groups = [torch.eye(16)[place // 64], torch.eye(64)[place % 64]]
        tensors.append(torch.stack([F.pad(group, (0, 64 - group.shape[1])) for group in groups], 1)[None] * scale * 4)
    tensors.append(torch.randn(1, 1024, 2, 64, generator=rng))
    memory, config = RunMemory(), adaptive(density=0.07, order="auto")
    step = sparse_step(*tensors, grid, config, MaskCache(), memory, CallSite(0, 0, "cond", 0))
    choice = memory.orders.get(("orders", (0, 0, 0, 0), grid, 2), lambda: pytest.fail("the choice was not remembered"))
    pairs = [config.order_pairs[number] for number in choice]
    assert pairs[0][0] in ("raster", "frame_gilbert")
    assert pairs[1][0] == "space_major"
    errors = head_errors(step.out, exact_attention(*tensors))
    assert errors.max() < 0.1
    for order in ("gilbert", "raster", "space_major"):
        one = sparse_step(*tensors, grid, adaptive(density=0.07, order=order), MaskCache())
        assert head_errors(one.out, exact_attention(*tensors)).max() > 3 * errors.max()
    cached = CachedConfig(source=config, min_recall=None)
    for number in range(2):
        again = sparse_step(*tensors, grid, cached, MaskCache(), memory, CallSite(0, 0, "cond", number))
        assert torch.allclose(again.out, step.out, atol=1e-5)


def test_auto_complement_takes_for_each_head_what_errs_less(rng):
    q, k, v = (torch.randn(1, 2, 432, 16, generator=rng) for _ in range(3))
    q[:, 1], k[:, 1] = 4 * k[:, 1], 2 * k[:, 1]  # each query looks at its own key alone
    shares = torch.ones(2, dtype=torch.bool)
    masks = {}
    for name in ("none", "all", "auto"):
        masks[name] = adaptive(density=0.3, complement=name).select_reordered(q, k, v, GRID, shares)
    dense = {name: mask.to_dense()[0] for name, mask in masks.items()}
    assert torch.equal(dense["auto"][0], dense["all"][0])
    assert torch.equal(dense["auto"][1, :, :27], dense["none"][1])
    assert not dense["auto"][1, :, 27:].any()
