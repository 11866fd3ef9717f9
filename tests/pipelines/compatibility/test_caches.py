"""Diffusers' caches, which skip attention layers, blocks or whole calls: the step count must not depend on calls."""

import functools

import diffusers
import pytest
import torch
from combined_feature import run_twice, stock_run
from compatibility_document import not_applicable
from families import ALL_DENSE, attention_layers, small_tiles, transformers

import fastdit

STEPS = 3
ALL_TIMESTEPS = (-1, 1001)


def pyramid_attention_broadcast(pipe, family):
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=ALL_TIMESTEPS,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def first_block(pipe, family):
    return diffusers.FirstBlockCacheConfig(threshold=0.8)


def taylor_seer(pipe, family):
    return diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1)


def mag(pipe, family):
    return diffusers.MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS, retention_ratio=0.25)


def faster(pipe, family):
    return diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=ALL_TIMESTEPS,
        unconditional_batch_skip_range=2,
        attention_weight_callback=lambda _: 0.5,
        tensor_format=family.tensor_format,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


@pytest.mark.cell("Caches", "PyramidAttentionBroadcastConfig")
def test_pyramid_attention_broadcast(family):
    check_cache(family, pyramid_attention_broadcast)


@pytest.mark.cell("Caches", "FirstBlockCacheConfig")
def test_first_block(family):
    check_cache(family, first_block)


@pytest.mark.cell("Caches", "TaylorSeerCacheConfig")
def test_taylor_seer(family):
    check_cache(family, taylor_seer)


@pytest.mark.cell("Caches", "MagCacheConfig")
def test_mag(family):
    check_cache(family, mag)


@pytest.mark.cell("Caches", "FasterCacheConfig")
def test_faster(family):
    check_cache(family, faster)


def check_cache(family, make_config):
    """Dense calls as on stock with the cache, in both orders; sparse runs note the steps at which layers really ran."""

    def turn_on(pipe):
        for transformer in transformers(pipe):
            transformer.enable_cache(make_config(pipe, family))

    stock = stock_run(family, turn_on, steps=STEPS)
    without = family.run(family.build(), steps=STEPS)
    if torch.equal(stock, without):
        not_applicable("the cache skips nothing in this pipeline")
    sparse = []
    for late in (False, True):
        pipe = family.build()
        if not late:
            turn_on(pipe)
        dense = fastdit.enable(pipe, ALL_DENSE)
        if late:
            turn_on(pipe)
        assert torch.equal(run_twice(family, pipe, steps=STEPS), stock)
        dense.close()
        with fastdit.enable(pipe, small_tiles()) as session:
            ran = watch_layers(pipe, session)
            sparse.append(run_twice(family, pipe, steps=STEPS))
            half = len(ran) // 2
            assert ran[:half] == ran[half:]
            noted = {(record.transformer, record.layer, record.step) for record in session.stats.records.values()}
            assert noted == set(ran)
        for transformer in transformers(pipe):
            transformer.disable_cache()
        assert torch.equal(family.run(pipe, steps=STEPS), without)
    assert torch.equal(*sparse)


def watch_layers(pipe, session):
    """`(transformer, layer, step)` of attention calls of fastdit, with steps counted by the scheduler itself."""
    ran, done = [], [0]
    advance, set_timesteps = pipe.scheduler.step, pipe.scheduler.set_timesteps

    # Pipelines look at the signatures of both.
    @functools.wraps(advance)
    def counted(*args, **kwargs):
        done[0] += 1
        return advance(*args, **kwargs)

    @functools.wraps(set_timesteps)
    def restarted(*args, **kwargs):
        done[0] = 0
        return set_timesteps(*args, **kwargs)

    def watched(slot, decide):
        def wants_dense(*args):
            ran.append((slot.transformer, slot.layer, done[0]))
            return decide(*args)

        return wants_dense

    pipe.scheduler.step, pipe.scheduler.set_timesteps = counted, restarted
    for slot in session.slots:
        slot.wants_dense = watched(slot, slot.wants_dense)
    assert len(session.slots) == len(attention_layers(pipe))
    return ran
