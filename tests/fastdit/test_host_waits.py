"""A sparse call on a GPU, without one: after the first call of a run nothing makes the host wait for the device."""

import dataclasses

import pytest
import torch
from fake_cuda import fake_cuda

from fastdit import AdaptiveConfig, CachedConfig, MixedConfig, PyramidConfig, StaticConfig, guard, mask_reuse
from fastdit.attend import sparse_step
from fastdit.grid import VideoGrid
from fastdit.guard import HeadGuard, RecallGuard
from fastdit.key_orders import order_maker
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.order_trials import trial_errors
from fastdit.recall import sampled_recall
from fastdit.run_memory import RunMemory
from fastdit.selectors import pyramid
from fastdit.selectors.score_order import score_order
from fastdit_kernels import BlockMask, TileLayout, dispatch, node_keys, node_statistics

HEADS = 3
VIDEO = VideoGrid(frames=3, height=9, width=13)
JOINT = dataclasses.replace(VIDEO, text_length=37, text_first=True, kept_frames=1)
# Where the first call of a geometry or of a run may wait, and why. Later calls may not wait anywhere.
FIRST_CALL = {
    "key_orders.py:<lambda>": "orders of tokens and numbers of heads are made on the host and kept on the device",
    "static.py:select": "the mask of a geometry is made once",
    "static_patterns.py:reach": "likewise",
}
ORDERED = {"order": "raster"}
METHODS = {
    "mean": AdaptiveConfig(order="auto"),
    "sampled": AdaptiveConfig(estimator="sampled", **ORDERED),
    "antidiagonal": AdaptiveConfig(estimator="antidiagonal"),
    "rows, keys by score": AdaptiveConfig(estimator="rows", order="score"),
    "gate, pooled cover": AdaptiveConfig(min_similarity=0.5, complement="all"),
    "the better of two": AdaptiveConfig(complement="auto", pooled_level=2),
    "corrected mass": AdaptiveConfig(rho=True, complement="all"),
    "pyramid": PyramidConfig(num_levels=3),
    "pyramid, sampled keys": PyramidConfig(num_levels=2, kv_samples=8),
    "level shares": PyramidConfig(level_shares={0: 0.2, 1: 0.2}),
    "level mass": PyramidConfig(level_mass={0: 0.5, 1: 0.3}, min_similarity={1: 0.5}),
    "static": StaticConfig(pattern="window|frames:2|radial"),
    "cached": CachedConfig(check_every=1),
    "cached pyramid": CachedConfig(source=PyramidConfig(num_levels=2), min_recall=None),
    "exact mass": CachedConfig(mass="exact", refresh_every=1),
    "mixed": MixedConfig(heads={0: PyramidConfig(num_levels=2, **ORDERED), 1: "dense"}, default=StaticConfig()),
}


class HostCopy:
    """The copy to the host that the step after reads, with nothing in it; see `mask_reuse.HostCopy`."""

    def __init__(self, flags):
        assert flags.device.type == "cuda"

    def true_places(self):
        return []


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(dispatch, "architecture_of", lambda device: "sm_90")
    for module in (guard, mask_reuse):
        monkeypatch.setattr(module, "HostCopy", HostCopy)
    # Generators on a GPU exist where one does.
    monkeypatch.setattr(
        node_keys, "_projection", lambda dim, dtype, device: torch.empty(dim, 15, dtype=dtype, device=device)
    )
    with fake_cuda() as watch:
        yield watch


def tokens(grid, heads=HEADS, dtype=torch.bfloat16):
    return torch.empty(2, grid.length, heads, 64, dtype=dtype, device="cuda")


def orders(config):
    pairs = (("raster", "raster"),) if isinstance(config, MixedConfig) else config.order_pairs
    return tuple(pairs[-1 - head % len(pairs)] for head in range(HEADS))


CASES = [(name, VIDEO) for name in METHODS] + [
    (name, JOINT) for name in ("gate, pooled cover", "pyramid", "exact mass")
]


@pytest.mark.parametrize(("name", "grid"), CASES, ids=lambda case: case if isinstance(case, str) else case.text_length)
def test_only_the_first_call_waits(cuda, name, grid):
    config, cache, memory = METHODS[name], MaskCache(), RunMemory()
    looker = HeadGuard(RecallGuard(min_recall=0.5), config)
    for step in range(3):
        site = CallSite(0, 0, "cond", step, orders=orders(config))
        x = tokens(grid)
        result = sparse_step(x, x, x, grid, config, cache, memory, site)
        looker.look(result, 0, 0, 0, step)
        assert result.kept_pairs().device == result.out.device == x.device
        assert (result.out.shape, result.out.dtype) == (x.shape, x.dtype)
        if step == 0:
            waits = set(cuda.waits) - {"guard.py:_limits_of"}
            assert waits <= set(FIRST_CALL)
            cuda.waits.clear()
    assert cuda.waits == {}


def test_orders_are_tried_without_a_wait(cuda):
    """Only the choice itself is read, once per layer and run."""
    config, cache = AdaptiveConfig(order="auto", complement="auto", pooled_level=2), MaskCache()
    x = tokens(VIDEO).transpose(1, 2)
    errors = trial_errors(x, x, x, VIDEO, config, order_maker(x, x, VIDEO, cache))
    assert errors.shape == (5, 2, HEADS)
    assert set(cuda.waits) == {"key_orders.py:<lambda>"}


def test_cuts_of_a_long_video_are_few_calls(cuda, monkeypatch):
    """Wan 2.1 at 720p: 23,640 trees of 1,182 leaves. Each call of `optimal_cut` is some thousand launches."""
    calls = []

    def cut_none(use, drop, budget, most, min_nodes):
        calls.append(len(budget))
        return [torch.zeros_like(level, dtype=torch.bool) for level in use]

    monkeypatch.setattr(pyramid, "optimal_cut", cut_none)
    tiles = TileLayout((75600,), 64, 6)
    use, drop = ([torch.empty(40, 591, tiles.level_tiles(level), device="cuda") for level in range(6)] for _ in "ud")
    pyramid._cut(use, drop, None, [236] * 40, 0)
    assert sum(calls) == 40 * 591
    assert len(calls) <= 6
    groups = list(pyramid._head_groups(40, 591, tiles, use[0].device))
    assert len(groups) <= 2


def test_no_scores_of_rows_and_keys_are_formed(cuda, monkeypatch):
    """Sampled rows of Wan 2.1 at 720p: 715 MB of scores per head, 28.6 GB in all. Of sampled keys they are formed."""

    def cut_none(use, drop, budget, most, min_nodes):
        return [torch.zeros_like(level, dtype=torch.bool) for level in use]

    def formed(*arguments):
        raise MemoryError("scores")

    monkeypatch.setattr(pyramid, "optimal_cut", cut_none)
    monkeypatch.setattr(node_statistics, "_scores", formed)
    q_layout, kv_layout = TileLayout((75600,), 128), TileLayout((75600,), 64, 6)
    x = torch.empty(1, 40, 75600, 128, dtype=torch.bfloat16, device="cuda")
    cuda.waits.clear()
    (mask,) = pyramid.select(x, x, x, q_layout, kv_layout, budgets=[236])
    assert mask.indices.shape == (1, 40, 591, 236)
    assert cuda.waits == {}
    # The tokens, 774 MB; errors, 447 MB and as much again while they are turned; lists of what is kept.
    assert cuda.peak_bytes < 3e9
    with pytest.raises(MemoryError, match="scores"):
        pyramid.select(x, x, x, q_layout, kv_layout, budgets=[236], kv_samples=8)


def test_looking_at_a_mask_of_a_long_video_takes_few_launches(cuda):
    """As the guard does in every layer and step; one head after another was some three thousand launches."""
    length, heads = 75600, 80
    query, key = (torch.empty(1, heads, length, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    mask = BlockMask.full(TileLayout((length,), 128), TileLayout((length,), 64), query.device)
    cuda.operators = 0
    sampled_recall(query, key, mask, 16, 2)
    score_order(query, key, VideoGrid(frames=21, height=45, width=80))
    assert cuda.operators < 500
