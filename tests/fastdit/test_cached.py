"""The cached method: when masks are built, whose they are, and when a head is built anew alone."""

import dataclasses
import json
from unittest.mock import Mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdit
from fastdit import AdaptiveConfig, CachedConfig, ConfigError, Schedule, StaticConfig, VideoGrid
from fastdit.key_orders import Selection
from fastdit.mask_reuse import CallSite, HostCopy, ReusedMasks
from fastdit.packed_mask import KeptMask, PackedMask
from fastdit.recall import sampled_recall
from fastdit.run_memory import RunMemory
from fastdit_kernels import BlockMask, TileLayout, sampled_mass, stratified_rows

GRID = VideoGrid(frames=4, height=6, width=6, text_length=5)
SOURCE = AdaptiveConfig(q_tile=16, kv_tile=8, density=0.3)


def tensors(generator, heads=3, batch=2):
    return tuple(2 * torch.randn(batch, heads, GRID.length, 16, generator=generator) for _ in range(3))


def call(masks, config, qkv, step, place=(0, 0, "cond"), grid=GRID):
    def build():
        return Selection(*qkv[1:], config.source.select(*qkv, grid), torch.arange(grid.length))

    def rebuild(places, tensors, shares):
        assert shares is None
        return config.source.select(*tensors, grid)

    return masks.choose(config, *qkv, grid, CallSite(*place, step), build, rebuild)


def choose(*arguments, **options):
    selection, record = call(*arguments, **options)
    selection.mask.validate()
    return selection.mask.to_dense(), record


@pytest.fixture
def selected_heads(monkeypatch):
    """Number of heads of every selection."""
    calls, select = [], AdaptiveConfig.select

    def count(self, query, *rest):
        calls.append(query.shape[1])
        return select(self, query, *rest)

    monkeypatch.setattr(AdaptiveConfig, "select", count)
    return calls


def test_packing_keeps_every_entry(rng):
    segments = (45, 11)
    layout = TileLayout(segments, 4, 3)
    keep = torch.zeros(2, 3, 4, layout.total_tiles, dtype=torch.bool)
    keep[..., layout.level_offset(0) : layout.level_offset(1)] = torch.rand(2, 3, 4, 15, generator=rng) < 0.4
    keep[:, 1:, :, layout.level_offset(1) :] = False
    keep[:, 0] = False
    keep[:, 0, :, layout.level_offset(2) :] = True
    mask = BlockMask.from_dense(keep, q_len=segments, kv_len=segments, q_tile=16, kv_tile=4, num_levels=3)
    packed = PackedMask.pack(mask, 2, 3)
    assert packed.num_bytes == 2 * 3 * 4 * -(-layout.total_tiles // 8)
    unpacked = packed.unpack()
    unpacked.validate()
    assert torch.equal(unpacked.to_dense(), keep)


def random_mask(generator, heads, levels, share, batch=1):
    """Over 45 + 11 tokens, tiles of 16 and 4; some tiles of one level in each row."""
    layout = TileLayout((45, 11), 4, levels)
    keep = torch.zeros(batch, heads, 4, layout.total_tiles, dtype=torch.bool)
    first = layout.level_offset(levels - 1)
    keep[..., first:] = torch.rand(batch, heads, 4, layout.total_tiles - first, generator=generator) < share
    return BlockMask.from_dense(keep, q_len=(45, 11), kv_len=(45, 11), q_tile=16, kv_tile=4, num_levels=levels)


@pytest.mark.parametrize("packed", [False, True])
def test_heads_of_a_kept_mask_are_replaced_by_longer_and_shallower_lists(rng, packed):
    old, new = random_mask(rng, 1, 2, 0.3), random_mask(rng, 2, 1, 0.9, batch=2)
    old = BlockMask(old.indices[..., : int(old.counts.max())], old.counts, old.q_layout, old.kv_layout)
    assert new.indices.shape[3] > old.indices.shape[3]
    kept = KeptMask(old, 2, 3)  # one list for two batch entries and three heads
    if packed:
        kept.shrink()
    kept.replace_heads(torch.tensor([2, 0]), new)
    mask = kept.unpack()
    mask.validate()
    assert torch.equal(mask.kept_pairs(), dataclasses.replace(mask, known_pairs=None).kept_pairs())
    # Not at every use, be it kept as a list or as bits.
    assert mask.known_pairs is kept.unpack().known_pairs is not None
    dense = mask.to_dense()
    assert torch.equal(dense[:, 1], old.to_dense()[:, 0].expand(2, -1, -1))
    assert torch.equal(dense[:, [2, 0], :, : new.kv_layout.total_tiles], new.to_dense())
    assert not dense[:, [2, 0], :, new.kv_layout.total_tiles :].any()


def test_pooled_tiles_do_not_count_for_the_sampled_recall(rng):
    q, k = (torch.randn(1, 2, 56, 8, generator=rng) for _ in range(2))
    assert torch.equal(sampled_recall(q, k, random_mask(rng, 1, 2, 1.0), 3, 1), torch.zeros(1, 2))
    assert torch.allclose(sampled_recall(q, k, random_mask(rng, 1, 1, 1.0), 3, 1), torch.ones(1, 2))


def test_sampled_mass_is_exact_for_its_rows(rng):
    query, key = torch.randn(2, 3, 8, 16, generator=rng), torch.randn(2, 3, 29, 16, generator=rng)
    layout = TileLayout((21, 8), 8)
    exact = (query @ key.mT / 4).softmax(-1)
    tiles = torch.stack([part.sum(-1) for part in exact.split((8, 8, 5, 8), -1)], -1)
    expected = tiles.unflatten(2, (2, 4)).mean(3)
    assert torch.allclose(sampled_mass(query, key, layout, q_samples=4), expected, atol=1e-6)
    with pytest.raises(fastdit.InvalidInputError, match="groups of 3"):
        sampled_mass(query, key, layout, q_samples=3)


def test_sampled_recall_is_exact_for_its_rows(rng):
    q, k, v = tensors(rng)
    mask = SOURCE.select(q, k, v, GRID)
    rows = stratified_rows(mask.q_layout, 2).view(-1, 2)[[1, 4, 7]].flatten()  # of 9 video tiles
    keep = mask.to_dense().repeat_interleave(16, 2)[:, :, rows]
    spans = mask.kv_layout.row_members() > 0
    tokens = keep.repeat_interleave(8, 3)[..., spans]
    mass = (q[:, :, rows] @ k.mT / 4).softmax(-1)
    expected = torch.where(tokens, mass, 0).sum(-1).mean(-1)
    assert torch.allclose(sampled_recall(q, k, mask, 3, 2), expected, atol=1e-5)
    assert (expected < 0.99).all()


def test_masks_are_built_at_refresh_steps_and_reused_between(rng, selected_heads):
    masks, config = ReusedMasks(), CachedConfig(source=SOURCE, refresh_every=3, min_recall=None)
    seen = [choose(masks, config, tensors(rng), step) for step in (2, 3, 4, 5, 6, 9)]
    assert [record.built for _, record in seen] == [True, False, False, True, False, True]
    assert [record.age for _, record in seen] == [0, 1, 2, 0, 1, 0]
    assert selected_heads == [3, 3, 3]
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][0], seen[2][0])
    assert not torch.equal(seen[2][0], seen[3][0])
    assert all(record.recall is None for _, record in seen)


def test_every_transformer_layer_and_branch_has_its_own(rng):
    masks, config = ReusedMasks(), CachedConfig(source=SOURCE)
    places = [(0, 0, "cond"), (1, 0, "cond"), (0, 1, "cond"), (0, 0, "uncond")]
    qkv = [tensors(rng) for _ in places]
    built = [choose(masks, config, x, 0, place)[0] for x, place in zip(qkv, places, strict=True)]
    for x, place, mask in zip(qkv, places, built, strict=True):
        again, record = choose(masks, config, x, 1, place)
        assert torch.equal(again, mask)
        assert not record.built
    assert len(masks) == 4


def test_another_geometry_an_earlier_step_or_a_new_run_build_anew(rng):
    memory, config = RunMemory(), CachedConfig(source=SOURCE)
    memory.begin(1)
    masks, qkv = memory.masks, tensors(rng)
    assert choose(masks, config, qkv, 4)[1].built
    assert choose(masks, config, qkv, 3)[1].built
    other = VideoGrid(frames=6, height=4, width=6, text_length=5)
    assert choose(masks, config, qkv, 4, grid=other)[1].built
    assert choose(masks, config, [x[:1] for x in qkv], 5, grid=other)[1].built
    memory.begin(1)
    assert len(masks) == 1
    memory.begin(2)
    assert len(masks) == 0


def test_a_head_whose_recall_falls_is_built_anew_alone(rng, selected_heads):
    masks, config = ReusedMasks(), CachedConfig(source=SOURCE, min_recall=0.9, check_every=1)
    q, k, v = (0.2 * x for x in tensors(rng))
    # The queries of tile i look for keys that lie three tiles before them, and later one tile before.
    tile = torch.arange(GRID.video_length) // 16
    q[:, :, : GRID.video_length] += 6 * torch.eye(16)[tile]
    k[:, :, : GRID.video_length] += 6 * torch.eye(16)[(tile + 3) % 9]
    first, _ = choose(masks, config, (q, k, v), 0)
    moved = k.clone()
    moved[:, 1, : GRID.video_length] = k[:, 1, : GRID.video_length].roll(32, 1)
    changed = q, moved, v
    reused, record = choose(masks, config, changed, 1)
    assert torch.equal(reused, first)
    assert record.refreshed_heads == 0
    assert record.recall[0] > 0.9
    assert record.drift[1] > 0.5
    assert torch.allclose(record.drift[[0, 2]], torch.zeros(2), atol=1e-6)
    assert selected_heads == [3]

    refreshed, record = choose(masks, config, changed, 2)
    assert record.refreshed_heads == 1
    assert selected_heads == [3, 1]
    assert torch.equal(refreshed[:, [0, 2]], first[:, [0, 2]])
    assert torch.equal(refreshed[:, 1], SOURCE.select(*changed, GRID).to_dense()[:, 1])
    assert record.drift[1] == 0

    del selected_heads[:]
    settled, record = choose(masks, config, changed, 3)
    assert torch.equal(settled, refreshed)
    assert record.refreshed_heads == 0
    assert selected_heads == []


def test_recall_is_measured_at_check_steps(rng):
    masks, config, qkv = ReusedMasks(), CachedConfig(source=SOURCE, check_every=2), tensors(rng)
    records = [choose(masks, config, qkv, step)[1] for step in range(5)]
    assert [record.recall is not None for record in records] == [True, False, True, False, True]
    assert [record.drift is not None for record in records] == [False, False, True, False, True]


def test_without_room_masks_are_bits_and_then_built_in_every_step(rng):
    qkv, config = tensors(rng), CachedConfig(source=SOURCE)

    def run(max_bytes):
        masks = ReusedMasks(max_bytes)
        found = [choose(masks, config, qkv, step, (0, layer, "cond")) for step in (0, 1) for layer in (0, 1)]
        return masks.num_bytes, [mask for mask, _ in found], [record for _, record in found]

    held, masks, records = run(1 << 30)
    bits = 2 * 3 * 10 * 3  # ten query tiles; nineteen key tiles in three bytes
    assert held == 2 * (2 * 3 * 10 * 19 * 4 + 2 * 3 * 10 * 4)
    assert [record.built for record in records] == [True, True, False, False]
    for bound, left in ((held, held), (held - 1, held // 2 + bits), (2 * bits, 2 * bits)):
        size, found, records = run(bound)
        assert size == left
        assert all(torch.equal(mask, again) for mask, again in zip(masks, found, strict=True))
        assert all(record.kept for record in records)
    size, found, records = run(2 * bits - 1)
    assert [record.built for record in records] == [True, True, False, True]
    assert [record.kept for record in records] == [True, False, True, False]
    assert size == bits
    assert torch.equal(found[3], masks[3])


@pytest.mark.parametrize(
    "successor",
    [
        {"transformer": 1, "layer": 0, "step": 1},  # a second transformer takes over
        {"transformer": 0, "layer": 1, "step": 2},  # two steps after the first mask
        {"transformer": 0, "layer": 1, "step": 1, "phase": 1},
    ],
)
def test_masks_that_can_serve_no_more_make_room(rng, successor):
    qkv, config = tensors(rng), CachedConfig(source=SOURCE, refresh_every=2, min_recall=None)
    masks = ReusedMasks(2 * 3 * 10 * 3)  # room for the bits of one mask

    def record(**site):
        selected = Selection(*qkv[1:], SOURCE.select(*qkv, GRID), torch.arange(GRID.length))
        return masks.choose(config, *qkv, GRID, CallSite(**{"branch": "cond", **site}), lambda: selected, None)[1]

    assert record(transformer=0, layer=0, step=0).kept
    assert not record(transformer=0, layer=1, step=1).kept  # the first one is still of use
    assert record(**successor).kept
    assert len(masks) == 1


def test_flags_are_awaited_on_their_own_device(monkeypatch):
    """The current device may be another one, as it is after `pipe.to("cuda:1")`."""
    awaited, flags = [], Mock(device=torch.device("cuda:1"))
    monkeypatch.setattr(torch, "empty", Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Mock(record=lambda stream=None: awaited.append(stream)))
    HostCopy(flags)
    assert awaited == [flags.device]


def test_no_scalar_is_read_from_the_device(rng):
    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    masks, config, qkv = ReusedMasks(), CachedConfig(source=SOURCE, check_every=1), tensors(rng)
    with Reads() as reads:
        for step in range(3):
            call(masks, config, qkv, step)
        assert reads.found == 0
        torch.ones(1).item()
        assert reads.found == 1  # the check itself works


def test_shared_settings_are_given_once():
    schedule = Schedule(dense_steps=3)
    config = CachedConfig(source=AdaptiveConfig(q_tile=32, density=0.2), schedule=schedule, order="raster")
    assert (config.q_tile, config.order, config.schedule) == (32, "raster", schedule)
    assert config.source == AdaptiveConfig(q_tile=32, density=0.2, schedule=schedule, order="raster")
    plain = json.loads(json.dumps(config.to_dict()))
    assert (plain["method"], plain["source"]["method"], plain["source"]["density"]) == ("cached", "adaptive", 0.2)
    assert len({config, CachedConfig(source=config.source)}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": StaticConfig()}, "built once anyway"),
        ({"source": CachedConfig()}, "accepted is the config of another method"),
        ({"source": "adaptive"}, "accepted is the config of another method"),
        ({"source": AdaptiveConfig(q_tile=32), "q_tile": 64}, "q_tile=64, but source has 32: give it once"),
        ({"refresh_every": 0}, "refresh_every"),
        ({"min_recall": 1.5}, "min_recall"),
        ({"check_every": 0}, "check_every"),
        ({"sample_tiles": 0}, "sample_tiles"),
        ({"sample_rows": 0}, "sample_rows"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CachedConfig(**settings)


def pipeline_config(**settings):
    source = AdaptiveConfig(q_tile=8, kv_tile=4, min_tokens=0, density=0.4)
    return CachedConfig(source=source, schedule=Schedule(dense_steps=1, dense_layers=()), **settings)


def test_refreshed_in_every_step_it_is_its_source(tiny_wan, run):
    config = pipeline_config(refresh_every=1)
    with fastdit.enable(tiny_wan, config.source):
        expected = run(tiny_wan)
    with fastdit.enable(tiny_wan, config) as session:
        assert torch.equal(run(tiny_wan), expected)
        assert session.stats.mask_reuse()["reused"] == 0


def test_a_run_reuses_masks_reports_it_and_drops_them(tiny_wan, run):
    with fastdit.enable(tiny_wan, pipeline_config(refresh_every=3, check_every=2)) as session:
        first = run(tiny_wan, steps=6)
        report = session.stats.mask_reuse()
        # Five sparse steps of two layers and two branches: built at steps 1 and 4.
        assert (report["built"], report["reused"], report["not_kept"]) == (8, 12, 0)
        assert 0 < report["least_recall"] <= report["recall"] <= 1
        assert len(session.memory.masks) == 0
        summary = session.summary()
        assert "masks: 8 built, 12 reused" in summary
        assert "recall of reused masks" in summary
        assert torch.equal(run(tiny_wan, steps=6), first)
        assert 0.3 < session.stats.density(sparse_only=True) < 0.8
