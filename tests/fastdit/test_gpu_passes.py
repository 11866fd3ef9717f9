"""How often a sparse call on a GPU goes over all tokens, without one; and that fewer passes give the same output."""

import dataclasses
from collections import Counter

import pytest
import torch
from fake_cuda import fake_cuda
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdit import AdaptiveConfig, CachedConfig, MixedConfig, PyramidConfig, StaticConfig, key_orders
from fastdit.attend import sparse_step
from fastdit.grid import VideoGrid
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite, ReusedMasks
from fastdit.packed_mask import KeptMask
from fastdit.run_memory import RunMemory
from fastdit.selectors import exact_mass
from fastdit.selectors.own_tiles import most_own_tiles, own_tiles
from fastdit_kernels import BlockMask, TileLayout, dispatch, tiled_tokens

HEADS, DIM = 3, 64
VIDEO = VideoGrid(frames=3, height=9, width=13)
JOINT = dataclasses.replace(VIDEO, text_length=37, text_first=True, kept_frames=1)
GILBERT, RASTER = ("gilbert", "gilbert"), ("raster", "raster")
SAME, DIFFERENT = (GILBERT,) * HEADS, (GILBERT, RASTER, RASTER)


class WholePasses(TorchDispatchMode):
    """Operators that write a tensor as large as all tokens, by name."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(part.alias_info for part in func._schema.returns):
            large = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.numel() >= self.size]
            self.found[func._schema.name] += len(large)
        return out


def call(x, grid, config, cache, memory, step, orders):
    return sparse_step(*x, grid, config, cache, memory, CallSite(0, 0, "cond", step, orders=orders))


@pytest.mark.parametrize("orders", [SAME, DIFFERENT], ids=["one order", "orders of heads"])
@pytest.mark.parametrize(("grid", "gathers"), [(VIDEO, 3), (JOINT, 6)], ids=["video", "video and text"])
@pytest.mark.parametrize(
    "config", [AdaptiveConfig(), StaticConfig(), CachedConfig(min_recall=None)], ids=lambda config: config.method
)
def test_tokens_are_moved_once_each_way(monkeypatch, config, grid, gathers, orders):
    """With text, padding lies between tokens: selectors and kernel then take tokens that were gathered apart."""
    monkeypatch.setattr(dispatch, "architecture_of", lambda device: "sm_90")
    with fake_cuda():
        x = [torch.empty(2, grid.length, HEADS, DIM, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        cache, memory = MaskCache(), RunMemory()
        for step in range(2):
            with WholePasses(x[0].numel()) as passes:
                result = call(x, grid, config, cache, memory, step, orders)
            found = {name.removeprefix("fastdit::"): times for name, times in passes.found.items() if times}
            assert found == {"gather_to_tiles": gathers, "block_sparse_attention": 1, "scatter_from_tiles": 1}
            # What joins the heads next must not copy them.
            assert result.out.is_contiguous()


WAN_720P = VideoGrid(frames=21, height=45, width=80)


@pytest.mark.parametrize(("complement", "slots"), [("none", 118), ("all", 118), ("auto", 118)])
def test_a_mask_has_room_for_its_budget_alone(monkeypatch, complement, slots):
    """A slot for every key tile would be 112 MB in each of 80 calls per step, and so no list would be kept."""
    monkeypatch.setattr(dispatch, "architecture_of", lambda device: "sm_90")
    config = AdaptiveConfig(density=0.1, complement=complement, pooled_level=5)
    with fake_cuda() as watch:
        x = torch.empty(1, 40, WAN_720P.length, 128, dtype=torch.bfloat16, device="cuda")
        mask = config.select(x, x, x, WAN_720P)
        assert mask.indices.shape == (1, 40, 591, slots)
        assert watch.waits == {}
        kept = KeptMask(mask, 1, 40)
        assert 80 * kept.num_bytes < ReusedMasks().max_bytes
        kept.shrink()
        assert kept.unpack().indices.shape[3] == slots


def test_a_mask_of_the_exact_mass_has_room_for_its_budget_alone():
    with fake_cuda():
        mass = torch.empty(1, 40, 591, 1182, device="cuda")
        settings = {"top_p": 0.9, "min_density": 0.05, "max_density": 0.1}
        mask = exact_mass.select(mass, TileLayout((75600,), 128), TileLayout((75600,), 64), **settings)
        assert mask.indices.shape == (1, 40, 591, 118)


@pytest.mark.parametrize("segments", [(70,), (3,), (70, 9)])
@pytest.mark.parametrize(("q_tile", "kv_tile"), [(16, 4), (4, 16), (8, 8), (1, 4), (7, 5)])
def test_no_row_has_more_own_tiles_than_the_geometry_says(segments, q_tile, kv_tile):
    q_layout, kv_layout = TileLayout(segments, q_tile), TileLayout(segments, kv_tile)
    own = own_tiles(q_layout, kv_layout, torch.device("cpu"))
    most = most_own_tiles(q_layout, kv_layout)
    assert own.sum(1).max() <= most <= kv_layout.num_tiles
    if len(segments) == 1 and segments[0] >= q_tile:
        # Runs may begin anywhere.
        first = torch.arange(segments[0] - q_tile + 1)
        runs = own_tiles(TileLayout((len(first) * q_tile,), q_tile), kv_layout, first.device, first)
        assert runs.sum(1).max() <= most


class LargestTable(TorchDispatchMode):
    """Most bytes of a tensor that an operator makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(part.alias_info for part in func._schema.returns):
            self.bytes = max(self.bytes, 0, *(x.nbytes for x in tree_leaves(out) if isinstance(x, torch.Tensor)))
        return out


@pytest.mark.parametrize(("length", "entry_bytes"), [(75648, 0), (75600, 1)], ids=["whole tiles", "a ragged tile"])
def test_scores_are_counted_once_and_without_wide_tables(length, entry_bytes):
    """The rows of every entry as int64 would be 220 MB in every layer and step."""
    q_layout, kv_layout = TileLayout((length,), 128), TileLayout((length,), 64)
    with fake_cuda():
        indices = torch.empty(1, 40, 591, 1182, dtype=torch.int32, device="cuda")
        counts = torch.empty(1, 40, 591, dtype=torch.int32, device="cuda")
        mask = BlockMask(indices, counts, q_layout, kv_layout)
        with LargestTable() as tables:
            mask.kept_pairs()
        # Of the tiles a row of tokens is looked at.
        assert tables.bytes <= max(entry_bytes * indices.numel(), 8 * max(counts.numel(), 2 * length))
        with LargestTable() as tables:
            mask.kept_pairs()
        assert tables.bytes == 0


METHODS = {
    "adaptive": AdaptiveConfig(order="score"),
    "corrected mass": AdaptiveConfig(rho=True, complement="all"),
    "pyramid": PyramidConfig(num_levels=3, order="auto"),
    "cached": CachedConfig(check_every=1),
    "exact mass": CachedConfig(mass="exact", refresh_every=2),
    "mixed": MixedConfig(
        heads={0: PyramidConfig(num_levels=2, order="raster"), 1: "dense", 2: StaticConfig(q_tile=64)},
        default=StaticConfig(),
    ),
}


@pytest.mark.parametrize("grid", [VIDEO, JOINT], ids=["video", "video and text"])
@pytest.mark.parametrize("name", METHODS)
def test_the_way_of_a_gpu_gives_the_same(monkeypatch, rng, name, grid):
    """The operators as they move tokens on a GPU, run by their eager twins here."""
    config = METHODS[name]
    steps = [[torch.randn(2, grid.length, 4, 16, generator=rng) for _ in range(3)] for _ in range(2)]
    found = []
    for at_once in (False, True):
        for module in (key_orders, tiled_tokens):
            monkeypatch.setattr(module, "counts_passes", lambda x, at_once=at_once: at_once)
        cache, memory = MaskCache(), RunMemory()
        found.append([call(x, grid, config, cache, memory, step, None) for step, x in enumerate(steps)])
    for plain, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled.out, plain.out)
        for one, other in zip(tiled.launches, plain.launches, strict=True):
            assert torch.equal(one.query, other.query)
            assert torch.equal(one.key, other.key)
            assert torch.equal(one.mask.to_dense(), other.mask.to_dense())
