"""The guard on a pipeline: a head under its promised recall is dense from the next step on, all others go on."""

import pytest
import torch
from plans import make_plan
from tests_support import build_tiny_wan, run_wan

import fastdit
from fastdit import RecallGuard
from fastdit.adapters import find_adapter
from fastdit.plan_config import identify

SMALL = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0, "schedule": fastdit.Schedule(dense_steps=0, dense_layers=())}
SIZE = {"size": (64, 96), "steps": 4}


@pytest.fixture(scope="module")
def wan():
    return build_tiny_wan()


def plan_of(pipe, tables, recall=None, **settings):
    identity = identify(pipe.transformer, find_adapter(pipe.transformer).sites(pipe.transformer))
    plan = make_plan(tables, [identity], **settings)
    if recall is None:
        return plan
    table = (tuple(map(tuple, recall)),)
    return plan.model_copy(update={"phases": tuple(one.model_copy(update={"recall": table}) for one in plan.phases)})


MUCH = [[["much", "much"], ["much", "much"]]]


def test_a_head_under_its_promise_is_dense_from_the_next_step_on(wan):
    # Head 1 of layer 0 is promised what half of the tiles cannot keep, the others next to nothing.
    promising = plan_of(wan, [MUCH], recall=[[0.01, 1.0], [0.01, 0.01]])
    without = [[["much", "dense"], ["much", "much"]]]
    with fastdit.enable(wan, plan_of(wan, [MUCH, without], until=[0.25, 1.0])):
        expected = run_wan(wan, **SIZE)
    with fastdit.enable(wan, promising, guard=1.0) as session:
        guarded = run_wan(wan, **SIZE)
        assert [(one.transformer, one.layer, one.head, one.step) for one in session.guard.fallen] == [(0, 0, 1, 1)]
        assert "heads made dense for their recall: 1" in session.summary()
        assert "0.0.1 from step 1" in session.summary()
        again = run_wan(wan, **SIZE)
        assert len(session.guard.fallen) == 1
    assert torch.equal(guarded, expected)
    assert torch.equal(again, guarded)


def test_kept_promises_change_nothing(wan):
    promising = plan_of(wan, [MUCH], recall=[[0.01] * 2] * 2)
    with fastdit.enable(wan, promising):
        free = run_wan(wan, **SIZE)
    with fastdit.enable(wan, promising, guard=0.9) as session:
        assert torch.equal(run_wan(wan, **SIZE), free)
        # Two layers, two branches, four steps.
        assert session.guard.checks == 16
        assert session.guard.fallen == []
    with fastdit.enable(wan, promising, guard=RecallGuard(check_every=2)) as session:
        run_wan(wan, **SIZE)
        assert session.guard.checks == 8


@pytest.mark.parametrize(
    "config",
    [
        fastdit.AdaptiveConfig(density=0.3, **SMALL),
        fastdit.PyramidConfig(density=0.3, order="auto", **SMALL),
        fastdit.CachedConfig(source=fastdit.AdaptiveConfig(density=0.3, **SMALL)),
        fastdit.CachedConfig(source=fastdit.AdaptiveConfig(density=0.3, **SMALL), mass="exact"),
    ],
)
def test_every_method_can_be_guarded(wan, config):
    with fastdit.enable(wan, config, guard=RecallGuard(min_recall=1.0, share=1.0)) as session:
        assert run_wan(wan, **SIZE).isfinite().all()
        by_step = session.stats.layer_step_density(0)
        reasons = session.stats.dense_reasons()
    assert by_step[0, 3] == by_step[1, 3] == 1
    assert reasons["dense_heads"] >= 4


def test_wrong_guards_are_refused_and_nothing_is_changed(wan):
    before = wan.transformer.blocks[0].attn1.processor
    for guard in ("0.5", True, 1.5):
        with pytest.raises(fastdit.ConfigError, match="guard"):
            fastdit.enable(wan, fastdit.AdaptiveConfig(), guard=guard)
    with pytest.raises(fastdit.ConfigError, match="notes none"):
        fastdit.enable(wan, fastdit.AdaptiveConfig(), guard=0.5)
    assert wan.transformer.blocks[0].attn1.processor is before
