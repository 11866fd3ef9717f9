"""A plan on a pipeline: heads follow it phase by phase, and a plan for another model is refused."""

import pytest
import torch
from plans import make_plan
from tests_support import build_tiny_wan
from tests_support import run_wan as run_any

import fastdit
from fastdit.adapters import find_adapter
from fastdit.attend import settle_orders
from fastdit.order_trials import trial_errors
from fastdit.plan_config import identify


def run_wan(pipe, size=(64, 96), **settings):
    """A run at the 72 tokens that the plans are made for."""
    return run_any(pipe, size=size, **settings)


def identities(pipe):
    found = [module for module in (pipe.transformer, pipe.transformer_2) if module is not None]
    return [identify(module, find_adapter(module).sites(module)) for module in found]


@pytest.fixture(scope="module")
def wan():
    return build_tiny_wan()


DENSE, LITTLE, MUCH = ([[[name] * 2] * 2] for name in ("dense", "little", "much"))


def test_phases_change_the_density(wan):
    plan = make_plan([DENSE, MUCH, LITTLE], identities(wan), until=[0.25, 0.5, 1.0])
    with fastdit.enable(wan, plan) as session:
        run_wan(wan, steps=4)
        by_step = session.stats.layer_step_density(0)
        assert "fastdit: plan" in session.summary()
    steps = [by_step[1, step] for step in range(4)]
    assert steps[0] == 1
    assert 1 > steps[1] > steps[2] == steps[3] > 0


def test_a_dense_plan_is_bit_identical_and_a_file_does_as_well(wan, tmp_path):
    dense = run_wan(wan)
    make_plan([DENSE], identities(wan)).save(tmp_path / "plan.json")
    with fastdit.enable(wan, tmp_path / "plan.json"):
        assert torch.equal(run_wan(wan), dense)


def test_a_mode_for_all_heads_does_what_its_config_does(wan):
    schedule = fastdit.Schedule(dense_steps=0, dense_layers=())
    with fastdit.enable(wan, fastdit.AdaptiveConfig(q_tile=8, kv_tile=4, min_tokens=0, density=0.5, schedule=schedule)):
        alone = run_wan(wan)
    with fastdit.enable(wan, make_plan([MUCH], identities(wan))):
        assert torch.equal(run_wan(wan), alone)


def test_masks_are_reused_within_a_phase_and_not_beyond(wan):
    plan = make_plan([MUCH, LITTLE], identities(wan), refresh_every=10)
    with fastdit.enable(wan, plan) as session:
        run_wan(wan, steps=4)
        reuse = session.stats.mask_reuse()
        by_step = session.stats.layer_step_density(0)
    # Two layers, two branches, two phases; the second step of each phase reuses.
    assert (reuse["built"], reuse["reused"]) == (8, 8)
    assert by_step[0, 0] == by_step[0, 1] > by_step[0, 2] == by_step[0, 3]


def test_heads_that_settle_key_orders_settle_them_per_phase(wan):
    """A phase may group the heads of a layer otherwise than the one before."""
    mode = fastdit.PyramidConfig(
        q_tile=8, kv_tile=4, min_tokens=0, density=0.4, schedule=fastdit.Schedule(dense_steps=0, dense_layers=())
    ).to_dict()
    modes = {"dense": "dense", "pyramid": mode}
    first, second = [[["pyramid", "dense"]] * 2], [[["pyramid"] * 2] * 2]
    plan = make_plan([first, second], identities(wan), modes=modes)
    with fastdit.enable(wan, plan):
        assert run_wan(wan).isfinite().all()


def auto(config, **settings):
    schedule = fastdit.Schedule(dense_steps=0, dense_layers=())
    return config(q_tile=8, kv_tile=4, min_tokens=0, density=0.3, order="auto", schedule=schedule, **settings)


def test_a_plan_with_orders_tries_none_and_does_what_settling_does(wan, monkeypatch):
    """Heads of several methods, with and without a choice, in one layer; masks that are built once in a phase."""
    pyramid = auto(fastdit.PyramidConfig)
    modes = {
        "dense": "dense",
        "fixed": auto(fastdit.PyramidConfig).to_dict() | {"order": "raster"},
        "pyramid": pyramid.to_dict(),
        "adaptive": auto(fastdit.AdaptiveConfig).to_dict(),
        "kept": fastdit.CachedConfig(source=pyramid, refresh_every=10).to_dict(),
    }
    tables = [[[["adaptive", "pyramid"], ["dense", "pyramid"]]], [[["kept", "kept"], ["fixed", "kept"]]]]
    found, tried = {}, []

    def settle(group, tensors, grid, cache, memory, site):
        pairs = settle_orders(group, tensors, grid, cache, memory, site)
        found.update({(site.phase, site.layer, head): pair for head, pair in zip(group.heads, pairs, strict=True)})
        return pairs

    monkeypatch.setattr("fastdit.attend.settle_orders", settle)
    monkeypatch.setattr("fastdit.key_orders.trial_errors", lambda *args: tried.append(1) or trial_errors(*args))

    def run(orders=None):
        tried.clear()
        with fastdit.enable(wan, make_plan(tables, identities(wan), modes=modes, orders=orders)):
            return run_wan(wan, steps=4), len(tried)

    settled, trials = run()
    # Two groups and one in the first phase, one in each layer of the second: both branches take what one has settled.
    assert trials == 5
    orders = [[[[found.get((phase, layer, head)) for head in range(2)] for layer in range(2)]] for phase in range(2)]
    assert orders[0][0][1][0] is None
    assert orders[1][0][1][0] == ("raster", "raster")
    orders[1][0][1][0] = None
    given, trials = run(orders)
    assert trials == 0
    assert torch.equal(given, settled)
    orders[0][0][0] = [
        ("space_major", "space_major") if pair[1] == "score" else ("gilbert", "score") for pair in orders[0][0][0]
    ]
    changed, trials = run(orders)
    assert trials == 0
    assert not torch.equal(changed, settled)


def test_two_transformers_have_a_table_each():
    pipe = build_tiny_wan(two_transformers=True)
    plan = make_plan([[DENSE[0], LITTLE[0]]], identities(pipe))
    with fastdit.enable(pipe, plan) as session:
        run_wan(pipe, steps=4)
        high, low = (session.stats.layer_step_density(number) for number in range(2))
    assert set(high.values()) == {1.0}
    assert max(low.values()) < 0.5
    with pytest.raises(fastdit.PlanError, match="the plan is for 2, the pipeline has 1"):
        fastdit.enable(build_tiny_wan(), plan)


def test_a_plan_for_another_model_is_refused_and_nothing_is_changed(wan):
    plan = make_plan([DENSE], identities(build_tiny_wan(head_dim=24)))
    before = wan.transformer.blocks[0].attn1.processor
    with pytest.raises(fastdit.PlanError, match=r"transformers\.0\.config_hash"):
        fastdit.enable(wan, plan)
    assert wan.transformer.blocks[0].attn1.processor is before
    with pytest.raises(fastdit.PlanError, match="cannot be read"):
        fastdit.enable(wan, "missing.json")


def test_a_length_far_from_the_plans_is_refused_and_the_next_call_is_right(wan):
    with fastdit.enable(wan, make_plan([MUCH], identities(wan))):
        with pytest.raises(fastdit.PlanError, match="72 tokens, the call has 18"):
            run_wan(wan, size=(32, 48))
        assert run_wan(wan).isfinite().all()
