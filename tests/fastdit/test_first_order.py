"""Pooled tiles that follow the query to first order, in the methods that pool."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import fastdit
from fastdit import AdaptiveConfig, CachedConfig, ConfigError, MixedConfig, PyramidConfig, StaticConfig
from fastdit.recall import spread_rows
from fastdit.selectors.sampled_error import masked_attention, sample_exactly
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention

GRID = (4, 16, 16)
SMALL = {"q_tile": 64, "kv_tile": 16, "min_tokens": 0, "order": "gilbert"}
METHODS = {
    "pyramid": PyramidConfig(density=0.15, **SMALL),
    "by rank": PyramidConfig(level_shares={0: 0.1, 3: 0.9}, **SMALL),
    "from the top": PyramidConfig(density=0.15, search="top_down", **SMALL),
    "pooled complement": AdaptiveConfig(density=0.1, complement="all", pooled_level=3, **SMALL),
    "pooled by its mass": AdaptiveConfig(density=0.1, complement="all", pooled_level=3, rho=True, **SMALL),
    "cached": CachedConfig(source=PyramidConfig(density=0.15, **SMALL)),
}


def token_like(generator, heads=2):
    """Keys and values from the same features, as a model makes them."""
    features = torch.randn(1, heads, 1024, 32, generator=generator)
    mix = torch.randn(32, 32, generator=generator) / 32**0.5
    return 0.7 * torch.randn(1, heads, 1024, 32, generator=generator), features, features @ mix


def without(config):
    if isinstance(config, CachedConfig):
        return dataclasses.replace(config, first_order=False, source=without(config.source))
    return dataclasses.replace(config, first_order=False)


def attend(tensors, config):
    return fastdit.sparse_attention(*tensors, config, grid=GRID)[0]


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_unlike_tokens_err_less_in_every_method_that_pools(config, rng):
    tensors = token_like(rng)
    exact = F.scaled_dot_product_attention(*tensors)
    better, plain = ((attend(tensors, one) - exact).norm() for one in (config, without(config)))
    assert better < 0.7 * plain


def test_methods_that_pool_nothing_do_not_change(rng):
    tensors = token_like(rng)
    for config in (AdaptiveConfig(density=0.2, **SMALL), StaticConfig(pattern="window:1,9,9", **SMALL)):
        assert torch.equal(attend(tensors, config), attend(tensors, without(config)))


def test_heads_with_and_without_it_stand_side_by_side(rng):
    tensors = token_like(rng, heads=3)
    plain, better = without(METHODS["pyramid"]), METHODS["pyramid"]
    out = attend(tensors, MixedConfig(heads={1: plain}, default=better))
    torch.testing.assert_close(out[:, [0, 2]], attend(tensors, better)[:, [0, 2]])
    torch.testing.assert_close(out[:, 1], attend(tensors, plain)[:, 1])
    alone = attend(tensors, MixedConfig(default=PyramidConfig(density=0.15, **SMALL), first_order=False))
    torch.testing.assert_close(alone, attend(tensors, plain))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_what_is_measured_on_sampled_rows_is_what_they_get(number, rng):
    query, key, value = token_like(rng)
    layout = TileLayout((1024,), 16, 4)
    keep = torch.rand(1, 2, 16, layout.total_tiles, generator=rng) < 0.2
    keep &= layout.tile_levels() == 2
    keep[..., layout.level_offset(2)] = True
    mask = BlockMask.from_dense(keep, q_len=1024, kv_len=1024, q_tile=64, kv_tile=16, num_levels=4)
    rows = sample_exactly(query, key, value, mask.q_layout, tiles=3, rows=number)
    _, picked = spread_rows(mask.q_layout, 3, number, query.device)
    whole = block_sparse_attention(query, key, value, mask, first_order_rows=1)
    (out,) = rows.outputs(key, value, [mask], first_order=True)
    torch.testing.assert_close(out, whole[:, :, picked])
    plain, better = (rows.error(key, value, mask, first_order=flag) for flag in (False, True))
    assert (better < plain).all()


def test_few_rows_by_all_their_scores_give_the_same(rng):
    query, key, value = token_like(rng)
    layout = TileLayout((1024,), 16, 4)
    keep = (layout.tile_levels() == 1).expand(1, 2, 16, -1)
    mask = BlockMask.from_dense(keep, q_len=1024, kv_len=1024, q_tile=64, kv_tile=16, num_levels=4)
    whole = block_sparse_attention(query, key, value, mask, first_order_rows=1)
    torch.testing.assert_close(masked_attention(query, key, value, mask, first_order_rows=1), whole)


def test_only_a_truth_value_is_accepted():
    with pytest.raises(ConfigError, match="first_order='yes'"):
        PyramidConfig(first_order="yes")
