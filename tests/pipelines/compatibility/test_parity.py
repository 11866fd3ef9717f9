"""Dense decisions, full density, sparse runs, and every shape of a call."""

from types import MappingProxyType

import pytest
import torch
from compatibility_document import not_applicable
from families import ALL_DENSE, close, small_tiles

import fastdit

REFUSALS = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError)


@pytest.mark.cell("Results", "a dense decision is bit-identical to the stock pipeline")
def test_dense_decision(family, dense):
    pipe = family.build()
    with fastdit.enable(pipe, ALL_DENSE) as session:
        assert torch.equal(family.run(pipe), dense)
        assert session.stats.density() == 1.0


@pytest.mark.cell("Results", "density 1.0 equals dense but for rounding")
def test_density_one(family, dense):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles(density=1.0)) as session:
        assert close(family.run(pipe), dense)
        assert not session.stats.dense_reasons()


@pytest.mark.cell("Results", "a sparse run is finite and deterministic")
def test_sparse_run(family, dense):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles()) as session:
        first = family.run(pipe)
        assert first.isfinite().all()
        assert not torch.equal(first, dense)
        assert torch.equal(family.run(pipe), first)
        assert 0.0 < session.stats.density() < 1.0


@pytest.mark.cell("Calls", "several prompts in a batch, density 1.0 equals dense")
def test_batch_of_prompts(family):
    _equals_dense(family, prompt=["one", "another one"], negative_prompt=["bad", "worse"])


@pytest.mark.cell("Calls", "num_videos_per_prompt=2, density 1.0 equals dense")
def test_videos_per_prompt(family):
    _equals_dense(family, num_videos_per_prompt=2)


@pytest.mark.cell("Calls", "guidance off, density 1.0 equals dense")
def test_guidance_off(family):
    _equals_dense(family, family.unguided, **family.guidance_off)


@pytest.mark.cell("Calls", "guidance stopped part-way, density 1.0 equals dense")
def test_guidance_stopped(family, dense):
    if family.half_guided:
        _equals_dense(family, family.half_guided)
        return

    def stop(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    if torch.equal(_equals_dense(family, callback_on_step_end=stop), dense):
        not_applicable("the pipeline asks for guidance once, before the first step")


@pytest.mark.cell("Calls", "token counts that do not divide by tiles, one frame included: density 1.0 equals dense")
def test_unusual_sizes(family):
    for size in family.sizes[1:]:
        _equals_dense(family, **size)


@pytest.mark.cell("Calls", "1 (Mochi: 2), 4 and 8 steps: every step counted, dense ones as scheduled")
def test_few_steps(family):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles(schedule=fastdit.Schedule(dense_steps=0.25, dense_layers=()))) as session:
        for steps, dense in ((family.fewest_steps, 1), (4, 1), (8, 2)):
            assert family.run(pipe, steps=steps).isfinite().all()
            records = session.stats.records.values()
            assert {record.step for record in records} == set(range(steps))
            assert {record.step for record in records if record.dense_reason} == set(range(dense))


@pytest.mark.cell("Calls", "another resolution in the same session gives what a fresh session gives")
def test_resolution_change(family):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles()):
        alone = family.run(pipe, **family.sizes[1])
    with fastdit.enable(pipe, small_tiles()):
        usual = family.run(pipe)
        assert torch.equal(family.run(pipe, **family.sizes[1]), alone)
        assert torch.equal(family.run(pipe), usual)


def _equals_dense(family, variant=MappingProxyType({}), **arguments):
    pipe = family.build(**variant)
    try:
        dense = family.run(pipe, **arguments)
    except REFUSALS as error:
        not_applicable(f"the stock pipeline fails with {type(error).__name__}")
    # A stock guider that has stopped does not start again in the next run, so variants are built anew.
    pipe = family.build(**variant) if variant else pipe
    with fastdit.enable(pipe, small_tiles(density=1.0)) as session:
        assert close(family.run(pipe, **arguments), dense)
        assert not session.stats.dense_reasons()
    pipe = family.build(**variant) if variant else pipe
    with fastdit.enable(pipe, small_tiles()):
        assert family.run(pipe, **arguments).isfinite().all()
    return dense
