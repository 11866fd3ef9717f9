"""The yardstick of selectors on heads of the bundled model that lie in the repository."""

from functools import partial
from pathlib import Path

import pytest

from fastdit.capture import load_calls
from fastdit_eval.captured_heads import captured_heads
from fastdit_eval.selector_baselines import BASELINES
from fastdit_eval.selector_bench import run_selector_bench
from fastdit_eval.selector_methods import method_selectors

HEADS = Path(__file__).parents[2] / "eval" / "heads" / "tiny.pt"
DENSITY = 0.15
OURS = ("pyramid", "adaptive auto pooled")


@pytest.fixture(scope="module")
def errors():
    """Mean error by selector over the layers, those that reach the density."""
    groups = [partial(lambda heads: heads, heads) for heads in captured_heads(load_calls(HEADS))]
    published = [one for one in BASELINES if one.name not in ("random", "Radial")]
    ours = [one for one in method_selectors() if one.name in OURS]
    report = run_selector_bench(groups, densities=(DENSITY,), repeats=1, selectors=[*ours, *published])
    return {name: row[str(DENSITY)] for name, row in report["mean_error"].items()}


def test_they_are_of_several_layers_steps_and_prompts():
    calls = load_calls(HEADS)
    assert {(call.layer, call.step) for call in calls} == {(layer, step) for layer in (0, 3, 5) for step in (2, 9)}
    assert len(calls) == 12
    assert not calls[0].query.equal(calls[6].query)


def test_the_pyramid_errs_less_than_six_tenths_of_the_best_published_selector(errors):
    best = min(error for name, error in errors.items() if name not in (*OURS, "oracle"))
    assert errors["pyramid"] < 0.6 * best
    assert errors["adaptive auto pooled"] < 0.6 * best
