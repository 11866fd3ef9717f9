"""What one mode is measured to do: the orders it takes, and figures of a few query tiles that stand for all."""

import numpy as np
import pytest
import torch

from fastdit import AdaptiveConfig, CachedConfig, PyramidConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.key_orders import order_maker
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.order_trials import trial_errors
from fastdit.plan import ALL_SPARSE
from fastdit.recall import sampled_recall
from fastdit.run_memory import RunMemory
from fastdit.search.mode_figures import measure_modes
from fastdit.search.trial_figures import ModeCall

# What is measured on trial lies in unshifted tiles.
SETTINGS = {"shift_tiles": False, "schedule": ALL_SPARSE, "min_tokens": 0, "q_tile": 16, "kv_tile": 16, "order": "auto"}
GRIDS = [
    VideoGrid(frames=6, height=8, width=9),
    VideoGrid(frames=6, height=8, width=9, text_length=21),
    VideoGrid(frames=6, height=8, width=9, text_length=21, text_first=True),
]
SITE = CallSite(0, 0, "cond", 0)


@pytest.fixture(params=GRIDS, ids=["video", "text last", "text first"])
def tensors(request, rng):
    return request.param, [torch.randn(2, request.param.length, 4, 16, generator=rng) for _ in range(3)]


def measure(tensors, config, memory=None, site=SITE):
    grid, given = tensors
    (found,) = measure_modes(*given, grid, [ModeCall(config, memory or RunMemory(), site)], MaskCache())
    return found


@pytest.mark.parametrize(
    "config",
    [
        PyramidConfig(density=0.3, **SETTINGS),
        AdaptiveConfig(density=0.3, **SETTINGS),
        AdaptiveConfig(density=0.3, complement="auto", pooled_level=2, **SETTINGS),
    ],
    ids=["pyramid", "adaptive", "two candidates"],
)
def test_heads_take_the_order_that_errs_least(tensors, config):
    grid, (q, k, v) = tensors[0], (x.transpose(1, 2) for x in tensors[1])
    found = measure(tensors, config)
    errors = trial_errors(q, k, v, grid, config, order_maker(q, k, grid, MaskCache())).mean(1).double().numpy()
    assert np.array_equal(found.orders, errors.argmin(0))
    assert len(set(found.orders.tolist())) > 1
    assert np.allclose(found.error, errors.min(0), rtol=1e-4)
    # In the whole layer, in these orders: 16 of 27 query tiles stand for all.
    pairs = tuple(config.order_pairs[number] for number in found.orders)
    site = CallSite(0, 0, "cond", 0, orders=pairs)
    result = sparse_step(*tensors[1], grid, config, MaskCache(), RunMemory(), site)
    assert np.allclose(found.density, result.kept_pairs().double().numpy() / 2 / grid.length**2, atol=0.03)
    (launch,) = result.launches
    recall = sampled_recall(launch.query, launch.key, launch.mask, tiles=27, rows=16)
    assert np.allclose(found.recall, recall.amin(0).numpy(), atol=0.06)
    # And what is measured in orders that are given is what was measured in them.
    again = measure(tensors, config, site=site)
    assert all(np.allclose(one, other) for one, other in zip(found, again, strict=True))


def test_masks_that_are_kept_and_new_ones_take_the_same_orders(tensors):
    source = PyramidConfig(density=0.3, **SETTINGS)
    memory = RunMemory()
    kept = CachedConfig(source=source, refresh_every=10, min_recall=None)
    first = measure(tensors, kept, memory)
    numbers = first.orders.copy()
    new = measure(tensors, source, memory)
    assert np.array_equal(new.orders, numbers)
    assert np.allclose(new.density, first.density, atol=0.03)


@pytest.mark.parametrize("orders_given", [False, True], ids=["settled", "given"])
def test_modes_measured_together_are_those_measured_alone(tensors, orders_given):
    grid, given = tensors
    methods = [PyramidConfig(density=density, **SETTINGS) for density in (0.6, 0.1, 0.3)]
    methods.insert(1, AdaptiveConfig(density=0.3, **SETTINGS))
    methods.append(PyramidConfig(density=0.3, **{**SETTINGS, "q_tile": 2 * SETTINGS["q_tile"]}))
    methods.append(CachedConfig(source=methods[0], refresh_every=10, min_recall=None))
    sites = [SITE] * len(methods)
    if orders_given:
        numbers = [(0, 1, 0, 4), (2, 1, 0, 0), (3, 3, 3, 3), (0, 4, 2, 1), (1, 1, 0, 0), (0, 1, 0, 4)]
        sites = [
            CallSite(0, 0, "cond", 0, orders=tuple(config.order_pairs[number] for number in row))
            for config, row in zip([*methods[:-1], methods[0]], numbers, strict=True)
        ]
    calls = [ModeCall(config, RunMemory(), site) for config, site in zip(methods, sites, strict=True)]
    calls[-1].memory.orders = calls[0].memory.orders
    together = measure_modes(*given, grid, calls, MaskCache())
    for config, site, found in zip(methods[:-1], sites, together, strict=False):
        alone = measure(tensors, config, site=site)
        assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))
    assert np.array_equal(together[-1].orders, together[0].orders)
