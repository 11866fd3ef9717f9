"""Putting the pipeline back, copies, sharing, and runs that end early."""

import copy

import pytest
import torch
from compatibility_document import not_applicable
from families import attention_layers, small_tiles, transformers

import fastdit

SOME_DENSE = fastdit.Schedule(dense_steps=1, dense_layers=())


@pytest.mark.cell("Lifecycle", "disable restores processors, weights and output exactly")
def test_restore(family, dense):
    pipe = family.build()
    before = [layer.processor for layer in attention_layers(pipe)]
    weights = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    hooks = len(pipe.transformer._forward_pre_hooks)
    with fastdit.enable(pipe, small_tiles()):
        family.run(pipe)
        assert all(layer.processor is not old for layer, old in zip(attention_layers(pipe), before, strict=True))
    assert all(layer.processor is old for layer, old in zip(attention_layers(pipe), before, strict=True))
    found = pipe.transformer.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert len(pipe.transformer._forward_pre_hooks) == hooks
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(family.run(pipe), dense)


@pytest.mark.cell("Lifecycle", "two pipelines that share a transformer: both sparse, both restored")
def test_shared_transformer(family, dense):
    pipe = family.build()
    other = copy.copy(pipe)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    with fastdit.enable(pipe, small_tiles(schedule=SOME_DENSE)) as session:
        # The first run is one of the other pipeline, while the scheduler of the enabled one was never used.
        sparse = family.run(other)
        assert not torch.equal(sparse, dense)
        for each in (pipe, other, other):
            assert torch.equal(family.run(each), sparse)
            assert {record.step for record in session.stats.records.values() if record.dense_reason} == {0}
        with pytest.raises(fastdit.AlreadyEnabledError, match="shares"):
            fastdit.enable(other, small_tiles())
    assert torch.equal(family.run(other), dense)


@pytest.mark.cell("Lifecycle", "copy.deepcopy of an enabled pipeline is a stock one of its own")
def test_deepcopy(family, dense):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles()) as session:
        sparse = family.run(pipe)
        clone = copy.deepcopy(pipe)
        records = dict(session.stats.records)
        for transformer in transformers(pipe):
            for parameter in transformer.parameters():
                parameter.data.zero_()
        assert torch.equal(family.run(clone), dense)
        assert session.stats.records == records
    with fastdit.enable(clone, small_tiles()):
        assert torch.equal(family.run(clone), sparse)
    assert torch.equal(family.run(clone), dense)


@pytest.mark.cell("Lifecycle", "save_pretrained of an enabled transformer writes the stock model")
def test_save_pretrained(family, tmp_path):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles()):
        family.run(pipe)
        pipe.transformer.save_pretrained(tmp_path)
    loaded = type(pipe.transformer).from_pretrained(tmp_path)
    expected = pipe.transformer.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.cell("Lifecycle", "an exception in mid-run is followed by a clean run")
def test_exception(family):
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles(schedule=SOME_DENSE)) as session:
        clean = family.run(pipe, steps=3)
        spent = []

        def explode(*_):
            spent.append(1)
            # After the first step, whether a step makes one call or two.
            if len(spent) == 3:
                raise ZeroDivisionError

        count = len(attention_layers(pipe)) // len(transformers(pipe))
        firsts = attention_layers(pipe)[::count]
        handles = [layer.to_q.register_forward_pre_hook(explode) for layer in firsts]
        with pytest.raises(ZeroDivisionError):
            family.run(pipe, steps=3)
        for handle in handles:
            handle.remove()
        assert torch.equal(family.run(pipe, steps=3), clean)
        assert {record.step for record in session.stats.records.values() if record.dense_reason} == {0}


@pytest.mark.cell("Lifecycle", "an interrupted run is followed by a clean one")
def test_interrupt(family):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    pipe = family.build()
    if not hasattr(type(pipe), "interrupt"):
        not_applicable("the pipeline has no interrupt")
    with fastdit.enable(pipe, small_tiles(schedule=SOME_DENSE)) as session:
        clean = family.run(pipe)
        try:
            family.run(pipe, callback_on_step_end=stop)
        except TypeError:
            not_applicable("the pipeline has no callback to interrupt from")
        assert {record.step for record in session.stats.records.values()} == {0}
        assert torch.equal(family.run(pipe), clean)
        assert {record.step for record in session.stats.records.values()} == {0, 1}
