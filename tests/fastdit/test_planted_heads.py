"""Heads of known kinds: measured and allocated, each gets what suits it."""

import numpy as np
import pytest
import torch

import fastdit
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.plan import TransformerIdentity
from fastdit.run_memory import RunMemory
from fastdit.search import CostModel, allocate, default_ladder
from fastdit.search.mode_figures import measure_modes
from fastdit.search.tables import build_tables
from fastdit.search.trial_figures import ModeCall

GRID = fastdit.VideoGrid(frames=8, height=12, width=16)
DENSE, LOCAL, TEMPORAL, SKIPPABLE = range(4)
MODES = default_ladder(q_tile=32, kv_tile=16, wide=True)
NAMES = list(MODES)


def near(reach):
    """Query and key whose scores are `-|distance / reach|^2 / 2` in t, y, x, but for a constant of the query."""
    axes = [torch.arange(size, dtype=torch.float32) for size in (GRID.frames, GRID.height, GRID.width)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2) / torch.tensor(reach)
    query, key = torch.zeros(2, GRID.length, 16)
    # Attention divides by sqrt(16).
    query[:, :3], key[:, :3] = places * 4, places
    query[:, 3], key[:, 3] = 4, -places.square().sum(1) / 2
    return query, key


@pytest.fixture(scope="module")
def tables():
    rng = torch.Generator().manual_seed(0)
    scattered = [1.3 * torch.randn(GRID.length, 16, generator=rng) for _ in range(2)]
    noise = [torch.randn(GRID.length, 16, generator=rng) for _ in range(2)]
    heads = [scattered, near((1.0, 1.0, 1.0)), near((100.0, 0.3, 0.3)), noise]
    query, key = (torch.stack([head[i] for head in heads], 1)[None] for i in range(2))
    value = torch.randn(1, GRID.length, 4, 16, generator=rng)
    value[:, :, DENSE] *= 5
    value[:, :, SKIPPABLE] *= 1e-3
    sparse = [mode for mode in MODES.values() if mode != "dense"]
    cache, memories = MaskCache(), {mode.method: RunMemory() for mode in sparse}
    site = CallSite(0, 0, "cond", 0)
    calls = [ModeCall(mode, memories[mode.method], site) for mode in sparse]
    found = measure_modes(query, key, value, GRID, calls, cache)
    columns = {name: np.stack([getattr(one, name) for one in found], 1) for name in ("error", "density", "recall")}
    arrays = {
        f"{name}_0": np.concatenate([np.full((4, 1), float(name != "error")), table], 1)[None, None]
        for name, table in columns.items()
    }
    arrays["gain_0"] = np.ones((1, 1))
    arrays["orders_0"] = np.full((1, 1, 4, len(MODES)), -1)
    arrays["joint_0"] = np.ones(len(MODES))
    identity = TransformerIdentity(class_name="Some", config_hash="0" * 64, num_layers=1, num_heads=4)
    return build_tables([arrays], [1.0], [identity], list(MODES.values()), (1.0,), np.ones((1, 1), bool), CostModel())


@pytest.mark.parametrize("max_error", [3e-3, 1e-2])
def test_planted_heads_get_what_suits_them(tables, max_error):
    choice = allocate(tables.error, tables.cost, max_error=max_error)
    names = [NAMES[number] for number in choice]
    density = tables.density[np.arange(4), choice]
    assert names[DENSE] == "dense"
    # Skipping keeps the tile of the query itself, no mode is cheaper.
    assert tables.cost[SKIPPABLE, choice[SKIPPABLE]] == tables.cost[SKIPPABLE, NAMES.index("skip")] < 0.03
    assert density[LOCAL] <= 0.36
    assert density[TEMPORAL] <= 0.36
    # Uniform allocation would have to be dense: no mode of less cost serves all heads.
    cheaper = tables.cost[0] < 0.5 * tables.cost[0, 0]
    assert (tables.error.sum(0)[cheaper] > max_error).all()


def test_the_temporal_head_is_no_window_and_the_local_one_no_diagonal(tables):
    window, diagonal = NAMES.index("window"), NAMES.index("same_place")
    assert tables.error[TEMPORAL, window] > 10 * tables.error[TEMPORAL, diagonal]
    assert tables.recall[TEMPORAL, diagonal] > 0.95
    assert tables.recall[DENSE, window] < 0.6
    assert (tables.recall[[DENSE, SKIPPABLE], NAMES.index("skip")] < 0.05).all()
