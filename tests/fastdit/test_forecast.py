"""Densities that are foretold against masks that selectors build, and against whole runs; gains of the cost model."""

import pytest
import torch

import fastdit
from fastdit.forecast import bit_bytes, forecast_run, list_bytes, method_density
from fastdit.grid import VideoGrid
from fastdit.search.cards import CARDS, attention_cost, expected_gain, recognise_card, roofline
from fastdit.selectors.static_patterns import Sink

SMALL = {"q_tile": 16, "kv_tile": 8, "min_tokens": 0}
GRIDS = [VideoGrid(frames=7, height=9, width=11), VideoGrid(frames=7, height=9, width=11, text_length=90)]
METHODS = [
    fastdit.AdaptiveConfig(density=0.2, **SMALL),
    fastdit.AdaptiveConfig(density=0.01, **SMALL),
    fastdit.AdaptiveConfig(density=0.3, complement="all", **SMALL),
    fastdit.PyramidConfig(density=0.2, **SMALL),
    fastdit.StaticConfig(pattern=Sink(), **SMALL),
]


@pytest.mark.parametrize("grid", GRIDS, ids=["video", "text"])
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_the_density_of_a_call_is_that_of_its_mask(config, grid, rng):
    query, key = torch.randn(2, 1, 1, grid.length, 8, generator=rng)
    mask = config.select(query, key, key, grid)
    found = method_density(config, grid)
    assert found.low == found.high
    # Of one tile in each row: the last ones are smaller.
    assert found.high == pytest.approx(mask.density(), abs=1 / mask.kv_layout.num_tiles)
    assert mask.indices.nbytes + mask.counts.nbytes <= list_bytes(config, grid, 1)
    assert bit_bytes(config, grid, 3) == 3 * mask.q_layout.num_tiles * -(-mask.kv_layout.num_tiles // 8)


def test_what_the_tensors_decide_is_a_range(rng):
    grid = GRIDS[1]
    config = fastdit.AdaptiveConfig(top_p=0.9, min_density=0.1, max_density=0.4, **SMALL)
    query, key = torch.randn(2, 1, 1, grid.length, 8, generator=rng)
    found = method_density(config, grid)
    assert found.low < found.high
    assert found.low - 0.01 <= config.select(query, key, key, grid).density() <= found.high + 0.01
    assert method_density(fastdit.PyramidConfig(level_mass={0: 0.5}, **SMALL), grid).high == 1.0


@pytest.mark.parametrize(
    "config",
    [
        fastdit.AdaptiveConfig(density=0.3, q_tile=8, kv_tile=4, min_tokens=0),
        fastdit.MixedConfig(heads={0: "dense"}, default=METHODS[3], q_tile=8, kv_tile=4),
        fastdit.CachedConfig(
            source=fastdit.AdaptiveConfig(density=0.3, q_tile=8, kv_tile=4, min_tokens=0), mass="exact", refresh_every=2
        ),
    ],
    ids=["adaptive", "mixed", "exact"],
)
def test_the_density_of_a_run(config, tiny_wan, run):
    with fastdit.enable(tiny_wan, config) as session:
        run(tiny_wan, steps=4, size=(96, 96))
    # 4 steps, the first dense; 2 layers, the first dense; 3 x 6 x 6 tokens.
    found = forecast_run(config, VideoGrid(frames=3, height=6, width=6), 2, 2, 4)
    assert found.run.high == pytest.approx(session.stats.density(), rel=0.02)
    assert (found.dense_steps, found.dense_layers, found.dense_reason) == (1, 1, None)
    assert sum(found.methods.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_tokens": 5000}, "693 tokens are fewer than min_tokens=5000"),
        ({"min_tokens": 0, "schedule": fastdit.Schedule(dense_steps=9)}, "all 4 steps"),
        ({"min_tokens": 0, "schedule": fastdit.Schedule(dense_layers=(0, 1))}, "all 2 layers"),
    ],
)
def test_runs_that_stay_dense(settings, reason):
    found = forecast_run(fastdit.AdaptiveConfig(**settings), GRIDS[0], 2, 2, 4)
    assert reason in found.dense_reason
    assert found.run.low == found.run.high == 1.0


def test_gains():
    card = CARDS["h100"]
    model = roofline(card, 128, kept_tiles=100.0)
    # By hand: an efficiency of 445 / 650, 3 % for the selection, one layer in ten dense.
    cost = attention_cost(model, {"adaptive": 0.9, "dense": 0.1}, 0.2)
    assert cost == pytest.approx(0.1 + 0.9 * (0.2 * 650 / 445 + 0.03))
    assert attention_cost(model, {"adaptive": 1.0}, 0.2, refresh_every=3) == pytest.approx(0.2 * 650 / 445 + 0.01)
    gain = expected_gain(cost, 650e12, 798e12, 0.5, card, 128)
    assert gain.attention == pytest.approx(1 / cost)
    assert gain.step == pytest.approx(2 / (cost + 1))
    assert gain.run == pytest.approx(2 / (0.5 * (cost + 1) + 1))
    assert expected_gain(0.5, 1.0, 1.0, 1.0, None, 128).step is None
    # Short rows pay their start-up, and all of the keys cost more than dense attention does.
    assert roofline(card, 64, 3.0).efficiency < roofline(card, 64, 30.0).efficiency
    assert all(roofline(one, 128, 1e6).cost(1.0, "adaptive") > 1 for one in CARDS.values())


def test_cards_are_recognised():
    assert recognise_card("NVIDIA H100 80GB HBM3") == "h100"
    assert recognise_card("NVIDIA GeForce RTX 4090") == "4090"
    assert recognise_card("Some Other") is None
    assert recognise_card(None) == "cpu"
