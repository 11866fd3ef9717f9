"""Cached masks from the exact softmax mass: what is kept, at what cost, and what the refresh step puts out."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import fastdit
from fastdit import AdaptiveConfig, CachedConfig, ConfigError, MixedConfig, PyramidConfig, Schedule, VideoGrid
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.orders import token_order
from fastdit.run_memory import RunMemory
from fastdit.selectors import exact_mass
from fastdit.selectors.own_tiles import own_tiles
from fastdit_kernels import TileLayout

GRID = VideoGrid(frames=3, height=5, width=6, text_length=21, text_first=True)
TILES = {"q_tile": 16, "kv_tile": 8}
Q, KV = TileLayout(GRID.query_segments, 16), TileLayout(GRID.key_segments, 8)
SOURCE = AdaptiveConfig(density=0.3, **TILES)


def tensors(generator):
    return tuple(2 * torch.randn(2, GRID.length, 3, 16, generator=generator) for _ in range(3))


def true_mass(query, key):
    """Mass of tile pairs in tile order, from the table of all token pairs."""
    order = token_order(GRID, "gilbert")
    q, k = (x.transpose(1, 2)[:, :, order].double() for x in (query, key))
    pairs = (q @ k.mT / 4).softmax(-1)
    columns = torch.stack([part.sum(-1) for part in pairs.split((*[8] * 11, 2, 8, 8, 5), -1)], -1)
    return torch.stack([part.mean(2) for part in columns.split((*[16] * 5, 10, 16, 5), 2)], 2)


def expected_rows(mass, video_tiles, text_tiles):
    """Own tiles and then the heaviest of each kind, by loops."""
    own, keep = own_tiles(Q, KV, mass.device), torch.zeros(mass.shape, dtype=torch.bool)
    for row in torch.cartesian_prod(*(torch.arange(size) for size in mass.shape[:3])).tolist():
        place = tuple(row)
        if place[2] >= 6:
            keep[place] = True
            continue
        mine = set(own[place[2], :12].nonzero().flatten().tolist())
        ranked = sorted(range(12), key=lambda tile, place=place, mine=mine: (tile not in mine, -mass[place][tile]))
        text = sorted(range(12, 15), key=lambda tile, place=place: -mass[place][tile])
        keep[place][ranked[: max(video_tiles, len(mine))] + text[:text_tiles]] = True
    return keep


def steps(config, all_tensors, memory=None):
    memory, cache = memory or RunMemory(), MaskCache()
    return [
        sparse_step(*qkv, GRID, config, cache, memory, CallSite(0, 0, "cond", step))
        for step, qkv in enumerate(all_tensors)
    ]


@pytest.mark.parametrize(("text_density", "text_tiles"), [(1.0, 3), (0.4, 1)])
def test_the_heaviest_tiles_are_kept_within_budgets_of_their_own(rng, text_density, text_tiles):
    q, k, v = tensors(rng)
    # Text keys that outweigh all video keys do not cost the video its share.
    k[:, : GRID.text_length] *= 3
    config = CachedConfig(source=SOURCE, mass="exact", text_density=text_density, min_recall=None)
    mask = steps(config, [(q, k, v)] * 2)[1].mask
    mask.validate()
    expected = expected_rows(true_mass(q, k), round(0.3 * 12), text_tiles)
    assert torch.equal(mask.to_dense(), expected)
    assert (mask.to_dense()[:, :, :6, :12].sum(-1) == 4).all()


def test_top_p_is_of_the_video_mass(rng):
    q, k, _ = tensors(rng)
    mass = true_mass(q, k).float()
    mask = exact_mass.select(mass, Q, KV, top_p=0.6, min_density=0.0, max_density=1.0).to_dense()[:, :, :6, :12]
    video = mass[:, :, :6, :12] / mass[:, :, :6, :12].sum(-1, keepdim=True)
    kept = torch.where(mask, video, 0)
    assert (kept.sum(-1) >= 0.6 - 1e-6).all()
    own = own_tiles(Q, KV, q.device)[:6, :12]
    lightest = torch.where(mask & ~own, video, 2).amin(-1)
    needed = kept.sum(-1) - lightest < 0.6
    assert (needed | (lightest == 2)).all()
    assert (lightest < 2).any()


def test_the_refresh_step_is_dense_and_counts_as_such(rng):
    all_tensors = [tensors(rng) for _ in range(4)]
    config = CachedConfig(source=SOURCE, mass="exact", refresh_every=3, check_every=1)
    results = steps(config, all_tensors)
    assert [result.reuse.built for result in results] == [True, False, False, True]
    for result, (q, k, v) in zip(results, all_tensors, strict=True):
        dense = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        pairs = result.kept_pairs().sum().item() / (2 * 3 * GRID.length**2)
        if result.reuse.built:
            assert torch.allclose(result.out, dense, atol=1e-5)
            assert pairs == 1.0
        else:
            assert not torch.allclose(result.out, dense, atol=1e-2)
            assert pairs < 0.7


def test_it_keeps_more_mass_than_an_estimate(rng):
    q, k, v = tensors(rng)
    recalls = [
        steps(config, [(q, k, v)])[0].reuse.recall.mean()
        for config in (CachedConfig(source=SOURCE, mass="exact"), CachedConfig(source=SOURCE))
    ]
    assert recalls[0] > recalls[1] + 0.02


def test_a_stale_head_is_built_anew_from_its_own_mass(rng):
    first, second = tensors(rng), tensors(rng)
    for old, new in zip(first, second, strict=True):
        new[:, :, [0, 2]] = old[:, :, [0, 2]]
    config = CachedConfig(source=SOURCE, mass="exact", check_every=1, min_recall=1.0)
    results = steps(config, [first, second, second])
    assert [result.reuse.refreshed_heads for result in results] == [0, 0, 1]
    masks = [result.mask.to_dense() for result in results]
    assert torch.equal(masks[2][:, [0, 2]], masks[1][:, [0, 2]])
    assert torch.equal(masks[2], expected_rows(true_mass(*second[:2]), 4, 3))


def test_a_call_that_stands_alone_uses_its_mask(rng):
    q, k, v = (x.transpose(1, 2) for x in tensors(rng))
    config = CachedConfig(source=SOURCE, mass="exact")
    _, stats = fastdit.sparse_attention(q, k, v, config, grid=(3, 5, 6), text_length=21)
    assert stats.density < 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mass": "guessed"}, "'source', 'exact'"),
        ({"mass": "exact", "source": PyramidConfig()}, "accepted is an AdaptiveConfig"),
        ({"mass": "exact", "source": MixedConfig()}, "accepted is an AdaptiveConfig"),
        ({"mass": "exact", "source": AdaptiveConfig(estimator="sampled")}, "estimator='sampled'.*no use for"),
        ({"mass": "exact", "text_density": 2.0}, "text_density"),
        ({"mass": "exact", "order": "auto"}, "order='auto'"),
        ({"mass": "exact", "source": AdaptiveConfig(order="score")}, "order='score'"),
        ({"text_density": 0.5}, "give mass='exact'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CachedConfig(**settings)


def test_a_run_counts_its_refresh_steps_as_dense(tiny_wan, run):
    source = AdaptiveConfig(q_tile=8, kv_tile=4, min_tokens=0, density=0.4)
    schedule = Schedule(dense_steps=1, dense_layers=())
    config = CachedConfig(source=source, mass="exact", refresh_every=3, schedule=schedule)
    with fastdit.enable(tiny_wan, config) as session:
        run(tiny_wan, steps=5)
        densities = session.stats.layer_step_density()
    assert [densities[1, step] == 1.0 for step in range(5)] == [True, True, False, False, True]
