"""Heads that differ in density alone select in one call, and get what each would get by itself."""

import pytest
import torch

from fastdit import AdaptiveConfig, CachedConfig, MixedConfig, PyramidConfig, StaticConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.head_groups import split_heads
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.run_memory import RunMemory
from fastdit.selectors import pyramid
from fastdit.selectors.own_tiles import OwnTiles
from fastdit_kernels import TileLayout

GRID = VideoGrid(frames=5, height=7, width=9, text_length=11, text_first=True)
TILES = {"q_tile": 16, "kv_tile": 8}
HEADS = 7
# Densities and orders of pyramids beside other methods, in no particular order.
TABLE = {
    0: PyramidConfig(density=0.3, **TILES),
    1: AdaptiveConfig(density=0.3, order="space_major", **TILES),
    2: PyramidConfig(density=0.1, **TILES),
    3: PyramidConfig(density=0.6, order="raster", **TILES),
    4: StaticConfig(pattern="window:2,3,3|sink", **TILES),
    5: PyramidConfig(density=0.1, **TILES),
    6: PyramidConfig(density=0.2, order="score", **TILES),
}


def tensors(generator, batch=2):
    return tuple(torch.randn(batch, GRID.length, HEADS, 16, generator=generator) * size for size in (3, 1, 1))


def one_by_one(monkeypatch):
    """Let every method select for its heads alone."""
    monkeypatch.setattr(PyramidConfig, "selects_with", None)


@pytest.fixture
def calls(monkeypatch):
    """Heads of every call of the selector."""
    found, select = [], pyramid.select

    def note(query, *rest, **options):
        found.append(query.shape[1])
        return select(query, *rest, **options)

    monkeypatch.setattr(pyramid, "select", note)
    return found


def assert_same_masks(found, expected):
    """Bit by bit, but for slots that no row uses."""
    for (heads, ours), (same_heads, theirs) in zip(found.masks(), expected.masks(), strict=True):
        assert heads == same_heads
        assert torch.equal(ours.counts, theirs.counts)
        assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(found.out, expected.out)


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("text", [0, 21])
@pytest.mark.parametrize("length", [7, 150, 203])
def test_a_budget_per_head_gives_what_each_budget_gives_alone(rng, length, text, samples):
    segments = (length, text) if text else (length,)
    q_layout, kv_layout = TileLayout(segments, 32), TileLayout(segments, 16, 4)
    q, k, v = (torch.randn(2, 5, length + text, 12, generator=rng) for _ in range(3))
    shares, budgets = torch.tensor([True, False, True, True, False]), [9, 1, 3, 3, 40]
    for own in (None, OwnTiles.of(q_layout, kv_layout, shares)):
        options = {"kv_samples": samples}
        (mask,) = pyramid.select(3 * q, k, v, q_layout, kv_layout, budgets=[budgets], own=own, **options)
        mask.validate()
        for head, budget in enumerate(budgets):
            one = slice(head, head + 1)
            mine = None if own is None else own.of_heads(shares[one])
            part = [3 * q[:, one], k[:, one], v[:, one]]
            (alone,) = pyramid.select(*part, q_layout, kv_layout, budgets=[budget], own=mine, **options)
            assert torch.equal(mask.counts[:, one], alone.counts)
            slots = alone.counts.max()
            assert torch.equal(mask.indices[:, one, :, :slots], alone.indices[..., :slots])


def test_budgets_of_few_heads_at_a_time(rng, monkeypatch):
    """Heads that are worked on apart keep their own budgets, in every batch entry."""
    q, k, v = (torch.randn(2, 3, 130, 12, generator=rng) for _ in range(3))
    layouts = TileLayout((130,), 32), TileLayout((130,), 16, 4)
    (whole,) = pyramid.select(q, k, v, *layouts, budgets=[[2, 5, 3]])
    monkeypatch.setattr(pyramid, "CPU_TABLE_BYTES", 1)
    (parts,) = pyramid.select(q, k, v, *layouts, budgets=[[2, 5, 3]])
    assert torch.equal(whole.indices, parts.indices)
    assert whole.counts.amax((0, 2)).tolist() == [2, 5, 3]


def test_pyramids_of_a_layer_select_in_one_call(rng, calls, monkeypatch):
    qkv, config = tensors(rng), MixedConfig(heads=TABLE)
    memory, place = RunMemory(), (MaskCache(), CallSite(0, 0, "cond", 0))
    # The first call also tries orders, with each density apart.
    sparse_step(*qkv, GRID, config, place[0], memory, place[1])
    calls.clear()
    together = sparse_step(*qkv, GRID, config, place[0], memory, place[1])
    assert calls == [5]
    assert [launch.heads for launch in together.launches] == [(0, 2, 5, 3, 6, 1, 4)]
    one_by_one(monkeypatch)
    calls.clear()
    apart = sparse_step(*qkv, GRID, config, place[0], memory, place[1])
    assert sorted(calls) == [1, 1, 1, 2]
    assert_same_masks(together, apart)


@pytest.mark.parametrize("whole", [True, False])
def test_some_heads_built_anew_in_one_call(rng, calls, monkeypatch, whole):
    """Stale heads of two densities beside one that lasts; a rule for the table, or one for each entry."""
    rule = {"check_every": 1, "min_recall": 1.0}
    table = TABLE if whole else {head: CachedConfig(source=TABLE[head], **rule) for head in (0, 1, 2, 3, 5, 6)}
    mixed = MixedConfig(heads={**table, 4: "dense"})
    config = CachedConfig(source=mixed, **rule) if whole else mixed
    steps = [tensors(rng) for _ in range(2)]
    # Heads 2, 3 and 6 lose what their masks were made for: other keys than these get all the attention.
    for x, y in zip(*steps, strict=True):
        y[:, :, [0, 1, 4, 5]] = x[:, :, [0, 1, 4, 5]]
    for x in steps:
        x[0][:, :, [2, 3, 6], 0] = 6.0
    steps[0][1][:, 20:30, [2, 3, 6], 0] += 6.0
    steps[1][1][:, 200:260, [2, 3, 6], 0] += 6.0

    def run():
        cache, memory, results = MaskCache(), RunMemory(), []
        for step in range(3):
            calls.clear()
            qkv = steps[min(step, 1)]
            results.append(sparse_step(*qkv, GRID, config, cache, memory, CallSite(0, 0, "cond", step)))
        return results

    together = run()
    assert together[2].reuse.refreshed_heads == 3
    assert calls == [3]
    one_by_one(monkeypatch)
    apart = run()
    assert calls == [1, 1, 1]
    for found, expected in zip(together, apart, strict=True):
        assert_same_masks(found, expected)


def test_other_settings_select_apart():
    table = {
        0: PyramidConfig(density=0.1),
        1: PyramidConfig(density=0.2, kv_samples=4),
        2: PyramidConfig(density=0.1, keep_own_tile=True),
        3: PyramidConfig(density=0.2, order="raster"),
        4: PyramidConfig(density=0.1, search="top_down"),
        5: PyramidConfig(density=0.2, search="top_down"),
        6: PyramidConfig(level_shares={0: 0.1, 2: 0.2}),
    }
    (launch,) = split_heads(MixedConfig(heads=table), HEADS).launches
    assert [group.heads for group in launch] == [(0,), (3,), (1,), (2,), (4,), (5,), (6,)]
    assert [group.joint == launch[0].joint for group in launch] == [True, True, False, False, False, False, False]


def test_levels_by_rank_select_together_in_several_orders(rng, monkeypatch):
    shares = {"level_shares": {0: 0.1, 2: 0.2}, **TILES}
    table = {head: PyramidConfig(order=name, **shares) for head, name in enumerate(("raster", "gilbert", "score"))}
    qkv = tensors(rng)
    config = MixedConfig(heads=table, default=TABLE[1])
    together = sparse_step(*qkv, GRID, config, MaskCache())
    one_by_one(monkeypatch)
    assert_same_masks(together, sparse_step(*qkv, GRID, config, MaskCache()))
