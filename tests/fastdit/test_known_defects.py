"""Defects that published sparse attention code has had, each pinned here as absent."""

import itertools
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastdit
from fastdit import AdaptiveConfig, CachedConfig, MixedConfig, PyramidConfig, Schedule, StaticConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.run_memory import RunMemory
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention

TILES = {"q_tile": 16, "kv_tile": 8}
ADAPTIVE = AdaptiveConfig(density=0.2, **TILES)
CONFIGS = {
    "adaptive": ADAPTIVE,
    "adaptive top-p": AdaptiveConfig(top_p=0.5, min_density=0.0, **TILES),
    "pyramid": PyramidConfig(density=0.3, num_levels=4, **TILES),
    "pyramid score": PyramidConfig(density=0.3, num_levels=4, order="score", **TILES),
    "pyramid sampled": PyramidConfig(density=0.3, num_levels=4, order="gilbert", kv_samples=2, **TILES),
    "static": StaticConfig(pattern="window:1,3,3", **TILES),
    "skip": StaticConfig(pattern="skip", **TILES),
    "cached": CachedConfig(source=ADAPTIVE, check_every=1),
    "cached exact": CachedConfig(source=ADAPTIVE, mass="exact", check_every=1),
    "mixed": MixedConfig(heads={0: PyramidConfig(density=0.3, **TILES), 1: StaticConfig(**TILES)}, default=ADAPTIVE),
}
SIZES = {"frames": 3, "height": 5, "width": 7}  # 105 tokens: ragged at every tile size and level


def tensors(generator, length, heads=3):
    return tuple(2 * torch.randn(1, length, heads, 16, generator=generator) for _ in range(3))


def reusing_step(qkv, grid, config):
    """The second of two steps, in which the cached method reuses its mask."""
    memory, cache = RunMemory(), MaskCache()
    for step in range(2):
        result = sparse_step(*qkv, grid, config, cache, memory, CallSite(0, 0, "cond", step))
    return result


@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_groups_are_disjoint_no_row_is_empty_and_text_is_kept_wherever_it_sits(name, text_first, rng):
    grid = VideoGrid(**SIZES, text_length=11, text_first=text_first)
    result = reusing_step(tensors(rng, grid.length), grid, CONFIGS[name])
    result.mask.validate()
    keep, layout = result.mask.to_dense(), result.mask.kv_layout
    video_q, video = result.mask.q_layout.segment_tiles(0)[0], layout.segment_tiles(0)[0]
    assert keep[..., video : layout.num_tiles].all()
    assert keep[:, :, video_q:, : layout.num_tiles].all()
    assert keep[:, :, :video_q, :video].any() or name.startswith("pyramid")
    # Text is never pooled.
    for level in range(1, layout.num_levels):
        first = layout.level_offset(level)
        assert not keep[..., first + layout.segment_tiles(level)[0] : layout.level_offset(level + 1)].any()
    assert keep.any(-1).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_place_of_the_text_does_not_change_the_result(name, rng):
    last = VideoGrid(**SIZES, text_length=11)
    first = VideoGrid(**SIZES, text_length=11, text_first=True)
    qkv = tensors(rng, last.length)
    expected = reusing_step(qkv, last, CONFIGS[name]).out
    moved = reusing_step([x.roll(11, 1) for x in qkv], first, CONFIGS[name]).out
    assert torch.allclose(moved.roll(-11, 1), expected, atol=1e-5)


def pooled_attention(query, key, value, level):
    """Attention over runs of `2**level` tokens, run by run."""
    runs = list(zip(key.split(1 << level, 2), value.split(1 << level, 2), strict=True))
    pooled_key = torch.stack([k.mean(2) for k, _ in runs], 2)
    pooled_value = torch.stack([v.mean(2) for _, v in runs], 2)
    bias = torch.tensor([math.log(k.shape[2]) for k, _ in runs], dtype=key.dtype)
    return ((query @ pooled_key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)) @ pooled_value


@pytest.mark.parametrize(("q_tile", "kv_tile"), [*itertools.product((8, 32, 64, 128), (8, 32, 64))])
def test_every_level_is_right_at_every_tile_size(q_tile, kv_tile, rng):
    q, k, v = (torch.randn(1, 1, 203, 16, generator=rng, dtype=torch.float64) for _ in range(3))
    q_layout, layout = TileLayout((203,), q_tile), TileLayout((203,), kv_tile, 5)
    for level in range(5):
        keep = torch.zeros(1, 1, q_layout.num_tiles, layout.total_tiles, dtype=torch.bool)
        keep[..., layout.level_offset(level) : layout.level_offset(level + 1)] = True
        mask = BlockMask.from_dense(keep, q_len=203, kv_len=203, q_tile=q_tile, kv_tile=kv_tile, num_levels=5)
        mask.validate()
        out = block_sparse_attention(q, k, v, mask)
        assert torch.allclose(out, pooled_attention(q, k, v, level), atol=1e-9), level


def test_levels_are_read_from_entries_not_from_their_place_in_the_list(rng):
    grid = VideoGrid(**SIZES)
    # Weak scores spread the mass, so that coarse tiles pay.
    qkv = [0.2 * x for x in tensors(rng, grid.length)]
    result = reusing_step(qkv, grid, PyramidConfig(density=0.4, num_levels=3, order="gilbert", **TILES))
    mask = result.mask
    levels = mask.kv_layout.tile_levels()[mask.to_dense().nonzero()[:, 3]]
    assert set(levels.tolist()) == {0, 1, 2}
    expected = block_sparse_attention(result.query, result.key, result.key, mask)
    shuffled = mask.indices.clone()
    for head, row in itertools.product(range(3), range(mask.q_layout.num_tiles)):
        count = int(mask.counts[0, head, row])
        shuffled[0, head, row, :count] = shuffled[0, head, row, torch.randperm(count, generator=rng)]
    assert not torch.equal(shuffled, mask.indices)
    other = BlockMask(shuffled, mask.counts, mask.q_layout, mask.kv_layout)
    assert torch.allclose(block_sparse_attention(result.query, result.key, result.key, other), expected, atol=1e-5)


class HostReads(TorchDispatchMode):
    """Refuses operators whose result, or the shape of it, must be known on the host."""

    refused = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten._unique2.default,
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in self.refused, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def no_kernel(monkeypatch):
    """The eager kernel for CPUs sorts rows by length on the host; only what comes before a kernel is looked at."""
    monkeypatch.setattr(
        "fastdit.attend.attend_tiles", lambda query, _k, _v, mask, **__: (query.padded(mask.q_layout), None)
    )
    monkeypatch.setattr(
        "fastdit.selectors.exact_mass.block_sparse_attention", lambda query, *_, **__: (query, query.sum(-1))
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("no_kernel")
def test_no_selection_waits_for_the_device(name, rng):
    grid = VideoGrid(**SIZES, text_length=11)
    qkv = tensors(rng, grid.length)
    with HostReads():
        result = reusing_step(qkv, grid, CONFIGS[name])
        result.kept_pairs()
    with pytest.raises(AssertionError, match="waits for the device"), HostReads():
        qkv[0].sum().item()


class HostTensors(TorchFunctionMode):
    """Refuses tensors that are made on the host: copying them to a device waits for all work under way there."""

    makers = (torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.linspace, torch.randint)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function not in (torch.tensor, torch.as_tensor), "numbers are copied to the device"
        assert function not in self.makers or kwargs.get("device") is not None, f"{function} makes it on the host"
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", [*CONFIGS, "pyramid rows", "adaptive auto", "adaptive cover", "stale heads"])
@pytest.mark.usefixtures("no_kernel")
def test_nothing_is_copied_from_the_host_once_a_layer_has_run(name, rng):
    configs = {
        **CONFIGS,
        "pyramid rows": PyramidConfig(level_shares={0: 0.2, 2: 0.5}, order="score", **TILES),
        "adaptive auto": AdaptiveConfig(density=0.2, order="auto", **TILES),
        "adaptive cover": AdaptiveConfig(density=0.2, complement="all", **TILES),
        "stale heads": CachedConfig(source=ADAPTIVE, check_every=1, min_recall=1.0),
    }
    grid = VideoGrid(**SIZES, text_length=11)
    memory, cache = RunMemory(), MaskCache()
    qkv = tensors(rng, grid.length)
    sparse_step(*qkv, grid, configs[name], cache, memory, CallSite(0, 0, "cond", 0))
    refreshed = 0
    with HostTensors():
        for step in range(1, 4):
            qkv = tuple(x.roll(3, 1) for x in qkv)
            result = sparse_step(*qkv, grid, configs[name], cache, memory, CallSite(0, 0, "cond", step))
            result.kept_pairs()
            refreshed += 0 if result.reuse is None else result.reuse.refreshed_heads
    assert refreshed or name != "stale heads"
    with pytest.raises(AssertionError, match="copied"), HostTensors():
        torch.tensor([1])


def small(**settings):
    return {
        "q_tile": 8,
        "kv_tile": 4,
        "min_tokens": 0,
        "schedule": Schedule(dense_steps=0, dense_layers=()),
        **settings,
    }


def test_layers_that_a_feature_cache_skips_do_not_shift_the_step(tiny_wan, run):
    block, calls = tiny_wan.transformer.blocks[1], []
    original = block.forward

    def every_other_call(hidden_states, *rest, **options):
        calls.append(len(calls))
        # Two branches per step: whole steps are skipped.
        return hidden_states if calls[-1] // 2 % 2 else original(hidden_states, *rest, **options)

    block.forward = every_other_call
    config = CachedConfig(source=AdaptiveConfig(density=0.4, **small()), refresh_every=4, min_recall=None)
    with fastdit.enable(tiny_wan, config) as session:
        run(tiny_wan, steps=6)
        ages = {(r.layer, r.step): r.reuse.age for r in session.stats.records.values() if r.branch == "cond"}
    del block.forward
    assert {step: age for (layer, step), age in ages.items() if layer == 0} == {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 1}
    assert {step: age for (layer, step), age in ages.items() if layer == 1} == {0: 0, 2: 2, 4: 0}


def test_nothing_of_a_prompt_reaches_the_next(tiny_wan, run):
    pyramid, adaptive = PyramidConfig(density=0.4, **small()), AdaptiveConfig(density=0.4, **small())
    config = CachedConfig(source=MixedConfig(heads={0: pyramid}, default=adaptive), refresh_every=3)
    with fastdit.enable(tiny_wan, config):
        expected = run(tiny_wan, prompt="a blue square", seed=3)
    with fastdit.enable(tiny_wan, config):
        other = run(tiny_wan, prompt="a red circle")
        assert torch.equal(run(tiny_wan, prompt="a blue square", seed=3), expected)
    assert not torch.equal(other, expected)


@pytest.mark.parametrize("level", range(6))
def test_ragged_tails_count_their_true_members(level):
    length = 197
    zeros, ones = torch.zeros(1, 1, length, 16), torch.ones(1, 1, length, 16)
    layout = TileLayout((length,), 8, 6)
    keep = torch.zeros(1, 1, 13, layout.total_tiles, dtype=torch.bool)
    keep[..., layout.level_offset(level) : layout.level_offset(level + 1)] = True
    mask = BlockMask.from_dense(keep, q_len=length, kv_len=length, q_tile=16, kv_tile=8, num_levels=6)
    out, lse = block_sparse_attention(zeros, zeros, ones, mask, return_lse=True)
    assert torch.allclose(lse, torch.full_like(lse, math.log(length)), atol=1e-5)
    assert torch.allclose(out, ones)


def test_the_lse_of_bf16_inputs_is_fp32(rng):
    q, k, v = (torch.randn(1, 2, 90, 16, generator=rng).bfloat16() for _ in range(3))
    q = 20 * q
    layout = TileLayout((90,), 8, 1)
    _, lse = block_sparse_attention(q, k, v, BlockMask.full(TileLayout((90,), 16), layout), return_lse=True)
    exact = (q.double() @ k.double().mT / 4).logsumexp(-1)
    assert lse.dtype == torch.float32
    assert exact.max() > 64  # where neighbouring bf16 values are half a unit apart
    assert torch.allclose(lse.double(), exact, atol=1e-3)
