"""The mixed method: every head as if its method ran alone, dense heads from the pipeline's own backend."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import fastdit
from fastdit import (
    AdaptiveConfig,
    CachedConfig,
    ConfigError,
    MixedConfig,
    PyramidConfig,
    Schedule,
    StaticConfig,
    VideoGrid,
    config_from_dict,
)
from fastdit.attend import sparse_step
from fastdit.head_groups import split_heads
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.run_memory import RunMemory
from fastdit_kernels.attention import attend_tiles

GRID = VideoGrid(frames=4, height=5, width=7, text_length=11, text_first=True)
TILES = {"q_tile": 16, "kv_tile": 8}
METHODS = {
    1: StaticConfig(pattern="window:2,3,3|sink", order="raster", **TILES),
    2: PyramidConfig(density=0.4, num_levels=3, **TILES),
    4: PyramidConfig(density=0.5, num_levels=2, order="score", **TILES),
    5: AdaptiveConfig(density=0.3, order="space_major", **TILES),
}
DEFAULT = AdaptiveConfig(density=0.4, **TILES)
HEADS = 7


def tensors(generator, grid=GRID, heads=HEADS, batch=2):
    return tuple(torch.randn(batch, grid.length, heads, 16, generator=generator) for _ in range(3))


def alone(qkv, head, config):
    """The output of one head whose method runs for it alone."""
    return sparse_step(*(x[:, :, head : head + 1] for x in qkv), GRID, config, MaskCache())


@pytest.fixture
def launches(monkeypatch):
    """Heads of every kernel launch."""
    found = []

    def note(query, *rest, **options):
        found.append(query.tokens.shape[1])
        return attend_tiles(query, *rest, **options)

    monkeypatch.setattr("fastdit.attend.attend_tiles", note)
    return found


def test_every_head_is_what_its_method_gives_alone_in_one_launch(rng, launches):
    qkv = tensors(rng)
    config = MixedConfig(heads={**METHODS, 3: "dense"}, default=DEFAULT)
    result = sparse_step(*qkv, GRID, config, MaskCache())
    assert launches == [6]
    pairs = result.kept_pairs()
    for head in set(range(HEADS)) - {3}:
        own = alone(qkv, head, METHODS.get(head, DEFAULT))
        assert torch.allclose(result.out[:, :, head], own.out[:, :, 0], atol=1e-5)
        assert pairs[head] == own.kept_pairs()[0]
    q, k, v = (x[:, :, 3:4].transpose(1, 2) for x in qkv)
    assert torch.equal(result.out[:, :, 3:4], scaled_dot_product_attention(q, k, v).transpose(1, 2))
    assert pairs[3] == 2 * GRID.length**2
    result.mask.validate()
    assert result.mask.kv_layout.num_levels == 3


def test_heads_of_other_tile_sizes_have_launches_of_their_own(rng, launches):
    qkv = tensors(rng)
    other = AdaptiveConfig(density=0.5, q_tile=32, kv_tile=16)
    config = MixedConfig(heads={0: other, 6: other, **METHODS}, default=DEFAULT)
    result = sparse_step(*qkv, GRID, config, MaskCache())
    assert sorted(launches) == [2, 5]
    for head, method in {0: other, 6: other, 3: DEFAULT, 2: METHODS[2]}.items():
        assert torch.allclose(result.out[:, :, head], alone(qkv, head, method).out[:, :, 0], atol=1e-5)


def test_heads_that_correct_for_missed_mass_have_a_launch_of_their_own(rng):
    qkv = tensors(rng)
    corrected = AdaptiveConfig(density=0.3, rho=True, **TILES)
    result = sparse_step(*qkv, GRID, MixedConfig(heads={2: corrected}, default=DEFAULT), MaskCache())
    for head, method in {2: corrected, 3: DEFAULT}.items():
        assert torch.allclose(result.out[:, :, head], alone(qkv, head, method).out[:, :, 0], atol=1e-5)
    plain = dataclasses.replace(corrected, rho=False)
    assert not torch.allclose(result.out[:, :, 2], alone(qkv, 2, plain).out[:, :, 0], atol=1e-3)


def test_methods_see_their_own_heads_alone(rng, monkeypatch):
    seen, select = [], AdaptiveConfig.select

    def note(self, query, key, value, grid):
        seen.append((self.density, query, key, value))
        return select(self, query, key, value, grid)

    monkeypatch.setattr(AdaptiveConfig, "select", note)
    qkv = tensors(rng)
    for x in qkv:
        x[:] = torch.arange(HEADS).view(1, 1, -1, 1)
    config = MixedConfig(heads={1: AdaptiveConfig(density=0.7, **TILES), 3: METHODS[5], 4: "dense"}, default=DEFAULT)
    sparse_step(*qkv, GRID, config, MaskCache())
    assert {density: [x[0, :, 0, 0].tolist() for x in found] for density, *found in seen} == {
        0.4: [[0, 2, 5, 6]] * 3,
        0.7: [[1]] * 3,
        0.3: [[3]] * 3,
    }


def test_the_density_of_dense_heads_is_one(rng):
    q, k, v = (x.transpose(1, 2) for x in tensors(rng, heads=4))
    sparse = AdaptiveConfig(density=0.4, **TILES)
    place = {"grid": (4, 5, 7), "text_length": 11}
    _, stats = fastdit.sparse_attention(q, k, v, MixedConfig(heads={1: "dense"}, default=sparse), **place, recall=True)
    _, own = fastdit.sparse_attention(q, k, v, sparse, **place, recall=True)
    kept = own.mask.kept_pairs().sum(0)
    assert stats.density == pytest.approx((kept[[0, 2, 3]].sum().item() / (2 * 151**2) + 1) / 4)
    assert stats.density == pytest.approx(stats.mask.density())
    assert torch.equal(stats.mask.to_dense()[:, [0, 2, 3]], own.mask.to_dense()[:, [0, 2, 3]])
    assert stats.mask.to_dense()[:, 1].all()
    assert torch.allclose(stats.recall[:, [0, 2, 3]], own.recall[:, [0, 2, 3]])
    assert torch.equal(stats.recall[:, 1], torch.ones(2))
    _, dense = fastdit.sparse_attention(q, k, v, MixedConfig(default="dense"), **place)
    assert (dense.density, dense.masks) == (1.0, ())
    with pytest.raises(fastdit.InvalidInputError, match="0 masks"):
        _ = dense.mask


def test_the_most_particular_entry_wins():
    a, b, c, d = (AdaptiveConfig(density=number / 10) for number in (1, 2, 3, 4))
    config = MixedConfig(heads={2: b, (1, None): c, (1, 0): d, (0, 1): "dense"}, default=a)
    followed = [
        {head: group.config for group in config.at_layer(layer, 3).groups(4) for head in group.heads}
        for layer in range(3)
    ]
    assert followed == [{0: a, 1: "dense", 2: b, 3: a}, {0: d, 1: c, 2: c, 3: c}, {0: a, 1: a, 2: b, 3: a}]


def test_settings_of_the_whole_call_are_given_once_and_tiles_may_differ():
    schedule = Schedule(dense_steps=2)
    small = StaticConfig(q_tile=32)
    config = MixedConfig(heads={0: AdaptiveConfig(schedule=schedule), 1: small}, q_tile=64, kv_tile=16, order="raster")
    assert config.schedule == schedule
    table = {head: entry for _, head, entry in config.rows}
    assert (table[0].q_tile, table[0].kv_tile, table[0].order) == (64, 16, "raster")
    assert (table[1].q_tile, table[1].kv_tile, table[1].schedule) == (32, 16, schedule)
    assert config.default == AdaptiveConfig(schedule=schedule, q_tile=64, kv_tile=16, order="raster")
    # Equal settings are one group, however they were given.
    again = MixedConfig(heads={0: AdaptiveConfig(density=0.3), 2: AdaptiveConfig(density=0.3)})
    assert [group.heads for group in split_heads(again, 3).launches[0]] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    "config",
    [
        MixedConfig(heads={0: "dense", (2, 1): METHODS[1], (1, None): METHODS[2]}, default=DEFAULT),
        MixedConfig(default="dense"),
        CachedConfig(source=PyramidConfig(density=0.1)),
        CachedConfig(source=MixedConfig(heads=METHODS, schedule=Schedule(dense_steps=1, dense_layers=(0, -1)))),
        AdaptiveConfig(top_p=0.8, schedule=Schedule(dense_layers=())),
        PyramidConfig(order="score", kv_samples=4),
    ],
)
def test_configs_come_back_from_plain_data(config):
    again = config_from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"density": 0.2}, "accepted is a dict with 'method'"),
        ({"method": "magic"}, "'adaptive'"),
        ({"method": "adaptive", "levels": 2}, "levels: method 'adaptive' has no such setting"),
        ({"method": "adaptive", "density": 2}, "density=2"),
        ({"method": "adaptive", "schedule": {"dense": 1}}, "accepted are dense_layers, dense_steps"),
    ],
)
def test_plain_data_of_no_config_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": {0: "sparse"}}, "accepted are 'dense' and the config of a method"),
        ({"heads": {0: fastdit.AttentionConfig()}}, "accepted are 'dense' and the config of a method"),
        ({"heads": {0: CachedConfig(mass="exact")}}, "mass='exact', which serves all heads at once"),
        ({"heads": {0: CachedConfig(source=MixedConfig())}}, "is a table of heads"),
        ({"default": MixedConfig()}, "selects by itself"),
        ({"heads": {-1: "dense"}}, "head=-1"),
        ({"heads": {(0, 1.5): "dense"}}, "head=1.5"),
        ({"heads": {"0": "dense"}}, "head='0'"),
        ({"heads": {(None, None): "dense"}}, "the place"),
        ({"heads": {(0, 1, 2): "dense"}}, "the place"),
        ({"heads": {1: "dense", (None, 1): "dense"}}, "head 1 twice"),
        ({"heads": [0, 1]}, "accepted is a table"),
        ({"heads": {0: AdaptiveConfig(min_tokens=5)}, "min_tokens": 6}, "min_tokens is given as 5 and 6"),
        ({"heads": {0: AdaptiveConfig(schedule=Schedule(dense_steps=1))}, "schedule": Schedule(dense_steps=2)}, "one"),
    ],
)
def test_bad_tables_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MixedConfig(**settings)


def test_places_that_a_model_does_not_have_are_refused(rng, tiny_wan):
    q, k, v = (x.transpose(1, 2) for x in tensors(rng, heads=2))
    place = {"grid": (4, 5, 7), "text_length": 11}
    with pytest.raises(ConfigError, match="head 2: accepted are 0 to 1"):
        fastdit.sparse_attention(q, k, v, MixedConfig(heads={2: "dense"}, **TILES), **place)
    with pytest.raises(ConfigError, match="give head numbers alone"):
        fastdit.sparse_attention(q, k, v, MixedConfig(heads={(0, 1): "dense"}, **TILES), **place)
    with pytest.raises(ConfigError, match="layer 2: accepted are 0 to 1"):
        fastdit.enable(tiny_wan, MixedConfig(heads={(2, 0): "dense"}))
    assert not hasattr(tiny_wan.transformer.blocks[0].attn1.processor, "slot")
    with pytest.raises(ConfigError, match="built once anyway"):
        CachedConfig(source=MixedConfig(heads={0: "dense"}, default=StaticConfig()))


def test_reused_masks_of_mixed_heads(rng):
    other = AdaptiveConfig(density=0.5, q_tile=32, kv_tile=16)
    # Unshifted, as in the calls that stand alone.
    source = MixedConfig(heads={**METHODS, 3: "dense", 6: other}, default=DEFAULT, shift_tiles=False)
    config, memory, cache = CachedConfig(source=source, refresh_every=2), RunMemory(), MaskCache()
    first, second, third = (tensors(rng) for _ in range(3))
    results = [
        sparse_step(*qkv, GRID, config, cache, memory, CallSite(0, 0, "cond", step))
        for step, qkv in enumerate((first, second, third))
    ]
    assert [result.reuse.built for result in results] == [True, False, True]
    assert len(memory.masks) == 2  # one for each combination of tile sizes
    for head, method in {**METHODS, 0: DEFAULT, 6: other}.items():
        assert torch.allclose(results[0].out[:, :, head], alone(first, head, method).out[:, :, 0], atol=1e-5)
    for built, reused in zip(results[0].launches, results[1].launches, strict=True):
        assert torch.equal(built.mask.to_dense(), reused.mask.to_dense())
    q, k, v = (x[:, :, 3:4].transpose(1, 2) for x in second)
    assert torch.equal(results[1].out[:, :, 3:4], scaled_dot_product_attention(q, k, v).transpose(1, 2))


def test_a_stale_head_is_built_anew_by_its_own_method(rng, monkeypatch):
    built, select = [], PyramidConfig.select_reordered

    def note(self, query, *rest, **options):
        built.append((self.num_levels, query.shape[1]))
        return select(self, query, *rest, **options)

    source = MixedConfig(heads=METHODS, default=DEFAULT)
    config, memory, cache = CachedConfig(source=source, check_every=1, min_recall=1.0), RunMemory(), MaskCache()
    steps = [tensors(rng) for _ in range(2)]
    # Heads 2 and 5 are the only ones that change.
    for x, y in zip(*steps, strict=True):
        y[:, :, [0, 1, 3, 4, 6]] = x[:, :, [0, 1, 3, 4, 6]]
    for step in range(3):
        if step == 2:
            monkeypatch.setattr(PyramidConfig, "select_reordered", note)
        qkv = steps[min(step, 1)]
        result = sparse_step(*qkv, GRID, config, cache, memory, CallSite(0, 0, "cond", step))
    assert result.reuse.refreshed_heads == 2
    assert built == [(3, 1)]
    result.mask.validate()
    place = result.launches[0].heads.index(5)
    expected = alone(steps[1], 5, METHODS[5]).mask.to_dense()[:, 0]
    assert torch.equal(result.mask.to_dense()[:, place, :, : expected.shape[2]], expected)


NO_DENSE = Schedule(dense_steps=0, dense_layers=())
SPARSE = AdaptiveConfig(q_tile=8, kv_tile=4, min_tokens=0, schedule=NO_DENSE, density=0.4)


def test_dense_heads_come_from_the_backend_of_the_pipeline(tiny_wan, run, monkeypatch):
    import fastdit_pipelines.dense_backend as dense_backend

    seen = []
    tiny_wan.transformer.set_attention_backend("native")
    dispatch = dense_backend.dispatch_attention_fn

    def note(query, key, value, **options):
        out = dispatch(query, key, value, **options)
        seen.append((options["backend"], query, key, value, out))
        return out

    monkeypatch.setattr(dense_backend, "dispatch_attention_fn", note)
    with fastdit.enable(tiny_wan, MixedConfig(heads={(1, 0): "dense"}, default=SPARSE)) as session:
        run(tiny_wan, steps=2)
        densities = session.stats.layer_step_density()
    assert len(seen) == 4  # one layer, two branches, two steps
    for backend, query, key, value, out in seen:
        assert backend == "native"
        assert query.shape[2] == 1
        expected = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        assert torch.equal(out, expected.transpose(1, 2))
    assert densities[1, 0] == pytest.approx((1 + densities[0, 0]) / 2, abs=0.05)


def test_layers_whose_heads_are_all_dense_run_the_original_processor(tiny_wan, run):
    dense = run(tiny_wan, steps=2)
    with fastdit.enable(tiny_wan, MixedConfig(default="dense", min_tokens=0, schedule=NO_DENSE)) as session:
        assert torch.equal(run(tiny_wan, steps=2), dense)
        assert session.stats.dense_reasons() == {"dense_heads": 8}
        assert "layers whose heads are all dense" in session.summary()


@pytest.mark.parametrize("wrap", [False, True])
def test_a_table_of_one_method_is_that_method(tiny_wan, run, wrap):
    with fastdit.enable(tiny_wan, SPARSE):
        expected = run(tiny_wan, steps=2)
    same = MixedConfig(heads={1: SPARSE}, default=AdaptiveConfig(density=0.4, q_tile=8, kv_tile=4))
    with fastdit.enable(tiny_wan, CachedConfig(source=same, refresh_every=1) if wrap else same):
        assert torch.equal(run(tiny_wan, steps=2), expected)


def test_heads_that_reuse_masks_stand_beside_heads_that_do_not():
    source = AdaptiveConfig(density=0.3, q_tile=16, kv_tile=8, min_tokens=0)
    cached = CachedConfig(source=source, refresh_every=2, min_recall=None)
    mixed = MixedConfig(heads={0: cached, 1: source, 2: "dense"}, default=cached)
    grid = VideoGrid(frames=4, height=8, width=8)
    rng = torch.Generator().manual_seed(0)
    cache, memory = MaskCache(), RunMemory()
    found = []
    for step in range(3):
        q, k, v = (torch.randn(1, grid.length, 4, 16, generator=rng) for _ in range(3))
        result = sparse_step(q, k, v, grid, mixed, cache, memory, CallSite(0, 0, "cond", step))
        fresh = sparse_step(q, k, v, grid, source, cache)
        found.append((result, fresh))
        # Whatever its neighbours do, a head without reuse gets what it would get alone.
        assert torch.equal(result.out[:, :, 1], fresh.out[:, :, 1])
        assert [launch.heads for launch in result.launches] == [(0, 3), (1,)]
    masks = [launches[0].mask.to_dense() for launches in (result.launches for result, _ in found)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    first, fresh = found[0]
    assert torch.equal(first.out[:, :, [0, 3]], fresh.out[:, :, [0, 3]])
    assert not torch.equal(found[1][0].out[:, :, 0], found[1][1].out[:, :, 0])
    assert [result.reuse.built for result, _ in found] == [True, False, True]


def test_rules_of_reuse_that_differ_are_launches_of_their_own():
    source = AdaptiveConfig(density=0.3, q_tile=16, kv_tile=8, min_tokens=0)
    often, rarely = (CachedConfig(source=source, refresh_every=n, min_recall=None) for n in (2, 5))
    split = split_heads(MixedConfig(heads={0: often, 1: rarely, 2: source}, default=often), 4)
    assert [tuple(head for group in launch for head in group.heads) for launch in split.launches] == [
        (0, 3),
        (1,),
        (2,),
    ]
    # A rule for the whole table wins over those of its entries.
    whole = split_heads(CachedConfig(source=MixedConfig(heads={0: often}, default=source)), 4)
    assert len(whole.launches) == 1
