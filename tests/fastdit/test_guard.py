"""The guard's own parts: which settings are accepted, and how heads become dense in every method."""

import gc
import json
import weakref

import pytest
import torch
from plans import make_plan

import fastdit
from fastdit import ConfigError, RecallGuard
from fastdit.guard import HeadGuard, densify
from fastdit.head_groups import split_heads
from fastdit.mask_reuse import HostCopy
from fastdit.plan import Plan
from fastdit.plan_config import PlanConfig

SMALL = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0}
ADAPTIVE = fastdit.AdaptiveConfig(density=0.3, **SMALL)
MIXED = fastdit.MixedConfig(heads={0: ADAPTIVE, 1: fastdit.PyramidConfig(**SMALL)}, default="dense")
PLAN = [[[["little", "much"]] * 2]]


@pytest.mark.parametrize(
    "config",
    [
        ADAPTIVE,
        fastdit.PyramidConfig(order="auto", **SMALL),
        fastdit.StaticConfig(pattern="window:frames=3", **SMALL),
        MIXED,
        fastdit.CachedConfig(source=ADAPTIVE, refresh_every=4),
        fastdit.CachedConfig(source=fastdit.PyramidConfig(order="auto", **SMALL)),
        fastdit.CachedConfig(source=MIXED),
    ],
)
def test_some_heads_become_dense_and_the_others_keep_their_settings(config):
    def settings(some):
        split = split_heads(some, 4)
        return split.dense, {h: group.config for launch in split.launches for group in launch for h in group.heads}

    before = settings(config)[1]
    dense, after = settings(densify(config, frozenset({1})))
    assert 1 in dense
    assert after == {head: one for head, one in before.items() if head != 1}
    assert settings(densify(config, frozenset(range(4)))) == ((0, 1, 2, 3), {})
    assert densify(config, frozenset({1})).min_tokens == 0


def test_settings_of_fallen_heads_do_not_outlive_their_run():
    """Other heads fall in every run of a server."""
    guard = HeadGuard(RecallGuard(min_recall=0.5), ADAPTIVE)
    guard.begin(1)
    guard._underway[0, 0] = [(0, HostCopy(torch.tensor([True, False])))]
    settled = weakref.ref(guard.settle(ADAPTIVE, 0, 0, 0, 1))
    assert settled().rows[0][1:] == (0, "dense")
    guard.begin(2)
    gc.collect()
    assert settled() is None


def test_masks_by_exact_mass_make_the_whole_layer_dense():
    config = fastdit.CachedConfig(source=ADAPTIVE, mass="exact")
    assert split_heads(densify(config, frozenset({1})), 4).dense == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "settings", [{"share": 1.5}, {"share": -1}, {"min_recall": 2}, {"check_every": 0}, {"sample_rows": 0}]
)
def test_bad_guards_are_refused(settings):
    with pytest.raises(ConfigError, match=f"guard: {next(iter(settings))}="):
        RecallGuard(**settings)


def test_a_guard_needs_something_that_is_promised():
    for config in (ADAPTIVE, PlanConfig(plan=make_plan(PLAN))):
        with pytest.raises(ConfigError, match=r"RecallGuard\(min_recall=...\)"):
            HeadGuard(RecallGuard(), config)
        HeadGuard(RecallGuard(min_recall=0.5), config)


def test_recalls_of_a_plan_are_kept_in_its_file_and_checked(tmp_path):
    plan = make_plan(PLAN)
    assert b"recall" not in _saved(plan, tmp_path)
    table = (((0.5, 0.9),) * 2,)
    noted = plan.model_copy(update={"phases": (plan.phases[0].model_copy(update={"recall": table}),)})
    _saved(noted, tmp_path)
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == noted
    assert PlanConfig(plan=loaded).promised_recall(0, 1, 0) == (0.5, 0.9)
    for bad, message in (([[[0.5, 1.1]] * 2], r"phases\.0\.recall\.0\.0\.1"), ([[[0.5]] * 2], r"phases\.0\.recall\.0")):
        content = (tmp_path / "plan.json").read_text()
        data = json.loads(content)
        data["phases"][0]["recall"] = bad
        with pytest.raises(fastdit.PlanError, match=message):
            Plan.parse(json.dumps(data).encode())


def _saved(plan, folder):
    plan.save(folder / "plan.json")
    return (folder / "plan.json").read_bytes()
