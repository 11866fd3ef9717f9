"""Tiles that lie elsewhere in each step: which tokens they hold, what they are good for, and where they must stay."""

import pytest
import torch
import torch.nn.functional as F

from fastdit import AdaptiveConfig, CachedConfig, ConfigError, MixedConfig, PyramidConfig, StaticConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.orders import SHIFT_SPAN, shift_at, shifted, token_order
from fastdit.run_memory import RunMemory

GRID = VideoGrid(frames=6, height=8, width=9)  # 432 tokens
TEXT_FIRST = VideoGrid(frames=6, height=8, width=9, text_length=21, text_first=True)
KEPT = VideoGrid(frames=6, height=8, width=9, text_length=21, kept_frames=2, dense_frames=1)
TILES = {"q_tile": 32, "kv_tile": 16, "min_tokens": 0, "order": "gilbert"}


def smooth(generator, grid, heads=2, dim=16):
    """Query, key and value `[1, S, H, D]` that change slowly over the video."""
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in (grid.frames, grid.height, grid.width)), indexing="ij")
    waves = torch.stack(axes, -1).view(-1, 3) @ torch.randn(3, 3 * heads * dim, generator=generator) / 2
    video = waves.cos().view(-1, 3, heads, dim)
    text = torch.randn(grid.text_length, 3, heads, dim, generator=generator)
    tokens = torch.cat([text, video] if grid.text_first else [video, text])
    return [x.unsqueeze(0) for x in (3 * tokens[:, 0], tokens[:, 1], tokens[:, 2])]


def run(tensors, grid, config, step, memory=None):
    return sparse_step(*tensors, grid, config, MaskCache(), memory or RunMemory(), CallSite(0, 0, "cond", step))


def exact(tensors):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2)


def gilbert(grid, shift):
    return shifted(token_order(grid, "gilbert"), grid, shift)


def test_no_two_of_many_steps_share_a_shift_and_none_is_zero():
    assert {shift_at(step) for step in range(SHIFT_SPAN)} == set(range(1, SHIFT_SPAN + 1))
    assert shift_at(SHIFT_SPAN) == shift_at(0)


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64])
def test_a_dozen_steps_spread_over_the_runs_of_every_level(size):
    places = sorted({shift_at(step) % size for step in range(12)})
    gaps = [(after - place) % size or size for place, after in zip(places, places[1:] + places[:1], strict=True)]
    assert max(gaps) <= max(1, -(-size // 6))


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST, KEPT])
def test_only_tokens_to_choose_from_are_shifted(grid):
    order, video = token_order(grid, "raster"), grid.key_segments[0]
    moved = shifted(order, grid, 5)
    assert moved[:video].tolist() == order[5:video].tolist() + order[:5].tolist()
    assert torch.equal(moved[video:], order[video:])
    assert torch.equal(shifted(order, grid, video + 5), moved)
    assert torch.equal(shifted(order, grid, video), order)


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST, KEPT])
def test_each_step_has_tiles_of_its_own(rng, grid):
    tensors, config = smooth(rng, grid), PyramidConfig(density=0.3, **TILES)
    steps = [run(tensors, grid, config, step) for step in (0, 1)]
    for step, result in enumerate(steps):
        order = gilbert(grid, shift_at(step))
        assert torch.equal(result.launches[0].query_order, order)
        assert torch.equal(result.launches[0].key_order, order)
    assert not torch.equal(steps[0].out, steps[1].out)


def test_shifted_orders_do_not_gather_in_the_cache(rng):
    tensors, cache, memory = smooth(rng, GRID), MaskCache(), RunMemory()
    config, held = PyramidConfig(density=0.3, **TILES | {"order": "auto"}), []
    for step in range(6):
        sparse_step(*tensors, GRID, config, cache, memory, CallSite(0, 0, "cond", step))
        held.append((len(cache), cache.num_bytes))
    assert held[1:] == held[:1] * 5


@pytest.mark.parametrize("grid", [GRID, TEXT_FIRST, KEPT])
@pytest.mark.parametrize("order", ["gilbert", "score", "auto"])
def test_full_density_equals_dense_in_any_step(rng, grid, order):
    tensors = smooth(rng, grid)
    config = PyramidConfig(density=1.0, **TILES | {"order": order})
    for step in (0, 7):
        assert torch.allclose(run(tensors, grid, config, step).out, exact(tensors), atol=1e-5)


def test_errors_of_successive_steps_cancel(rng):
    """The mean of eight steps over the same tensors errs well less than one of them; without shifts it is the same."""
    tensors = smooth(rng, GRID)
    true = exact(tensors)
    config = PyramidConfig(density=0.2, **TILES)
    outs = [run(tensors, GRID, config, step).out for step in range(8)]
    alone = torch.stack([(out - true).norm() for out in outs]).mean()
    together = (torch.stack(outs).mean(0) - true).norm()
    assert together < 0.85 * alone
    still = PyramidConfig(density=0.2, shift_tiles=False, **TILES)
    first, second = (run(tensors, GRID, still, step).out for step in (0, 1))
    assert torch.equal(first, second)
    assert (first - true).norm() < 1.2 * alone, "the gain is none of single calls"


def test_a_kept_mask_keeps_its_tiles_until_it_is_built_anew(rng):
    tensors, memory = smooth(rng, GRID), RunMemory()
    config = CachedConfig(source=PyramidConfig(density=0.3, **TILES), refresh_every=2, min_recall=None)
    steps = [run(tensors, GRID, config, step, memory) for step in range(4)]
    assert [step.reuse.built for step in steps] == [True, False, True, False]
    orders = [step.launches[0].query_order for step in steps]
    assert [
        torch.equal(order, gilbert(GRID, shift_at(built))) for order, built in zip(orders, (0, 0, 2, 2), strict=True)
    ] == [True] * 4
    assert torch.equal(steps[0].out, steps[1].out)
    assert torch.equal(steps[2].out, steps[3].out)
    assert not torch.equal(steps[1].out, steps[2].out)


def test_a_head_built_anew_on_the_way_keeps_the_tiles_of_the_others(rng):
    """Recall is made to fall by other tensors; what is built anew for them must fit the queries as they lie."""
    tensors, others, memory = smooth(rng, GRID), smooth(rng, GRID), RunMemory()
    source = PyramidConfig(density=0.3, **TILES)
    config = CachedConfig(source=source, refresh_every=10, check_every=1, min_recall=1.0)
    run(tensors, GRID, config, 0, memory)
    run(others, GRID, config, 1, memory)
    rebuilt = run(others, GRID, config, 2, memory)
    assert rebuilt.reuse.refreshed_heads > 0
    fresh = run(others, GRID, source, 0)
    stale = (rebuilt.out - fresh.out).abs().amax((0, 1, 3)) > 1e-6
    assert (~stale).sum() == rebuilt.reuse.refreshed_heads


@pytest.mark.parametrize("still", [{"shift_tiles": False}, {"num_levels": 1}])
def test_pyramids_without_shift_or_without_levels_stay(rng, still):
    result = run(smooth(rng, GRID), GRID, PyramidConfig(density=0.3, **TILES, **still), 1)
    assert torch.equal(result.launches[0].query_order, token_order(GRID, "gilbert"))


@pytest.mark.parametrize(
    ("config", "moves"),
    [
        (StaticConfig(pattern="window:3,5,5", **TILES), False),
        (AdaptiveConfig(density=0.3, **TILES), False),
        (AdaptiveConfig(density=0.3, complement="all", **TILES), True),
    ],
)
def test_only_methods_that_pool_are_shifted(rng, config, moves):
    result = run(smooth(rng, GRID), GRID, config, 1)
    assert torch.equal(result.launches[0].query_order, token_order(GRID, "gilbert")) is not moves


def test_heads_of_one_launch_are_shifted_each_by_its_method(rng):
    still = StaticConfig(pattern="window:3,5,5", **TILES)
    mixed = MixedConfig(heads={0: still}, default=PyramidConfig(density=0.3, **TILES))
    tensors = smooth(rng, GRID, heads=3)
    result = run(tensors, GRID, mixed, 4)
    (launch,) = result.launches
    for place, head in enumerate(launch.heads):
        shift = 0 if head == 0 else shift_at(4)
        assert torch.equal(launch.query_order[place], gilbert(GRID, shift))
    alone = run([x[:, :, :1] for x in tensors], GRID, still, 4)
    assert torch.allclose(result.out[:, :, :1], alone.out, atol=1e-6)


def test_the_setting_is_shared_by_tables_and_checked():
    mixed = MixedConfig(shift_tiles=False, default=PyramidConfig())
    assert mixed.default.shift_tiles is False
    assert CachedConfig(source=PyramidConfig(), shift_tiles=False).source.shift_tiles is False
    with pytest.raises(ConfigError, match="shift_tiles=1: accepted are True and False"):
        PyramidConfig(shift_tiles=1)
