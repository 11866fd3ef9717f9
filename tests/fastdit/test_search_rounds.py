"""How many runs a promise takes, and how often prompts that were not run keep it: searches on simulated prompts.

A prompt's PSNR is a line over the plan's error in dB, off by an unknown constant, with an offset of the prompt and
noise of the plan; the error is a mean over prompts, so the mean PSNR lies above it. The deviations are about those seen
on the bundled model: 4 dB between prompts, 1 dB within.
"""

import bisect
import math

import numpy as np
import pytest

from fastdit.search.allocation import pareto_front
from fastdit.search.promise import first_aim, surplus_of
from fastdit.search.rounds import CLOSE_WHEN_VERIFIED, rounds_until_kept
from fastdit.search.settings import SearchSettings
from fastdit.search.tables import SearchTables

SIZES = np.geomspace(1, 1e-3, 14)[None] * np.random.default_rng(0).uniform(1e-5, 1e-3, (72, 1))
ERROR = np.concatenate([np.zeros((72, 1)), SIZES], 1)
COST = np.concatenate([np.ones((72, 1)), np.tile(np.geomspace(0.02, 0.9, 14), (72, 1))], 1)
TABLES = SearchTables(ERROR, COST, COST, COST, ((1, 72),), 1)
PROMPTS = 4


@pytest.fixture(autouse=True)
def quick_allocation(monkeypatch):
    """The front's corners instead of an exact solution: hundreds of searches in a second."""
    points = sorted(pareto_front(ERROR, COST, 400), key=lambda point: point.error)
    errors = [point.error for point in points]

    def nearest(error, cost, max_error):
        return points[max(0, bisect.bisect_right(errors, max_error * (1 + 1e-12)) - 1)].choice

    monkeypatch.setattr("fastdit.search.rounds.allocate", nearest)


class Prompts:
    """The prompts of one search."""

    def __init__(self, seed, between, within, slope):
        self.random = np.random.default_rng(seed)
        self.constant, self.slope = self.random.normal(30 * (1 - slope) + math.log(10) / 20 * between**2, 2), slope
        self.between, self.within = between, within
        self.offsets = self.random.normal(0, between, PROMPTS)
        self.noise, self.runs = {}, set()

    def mean(self, choice):
        """Mean over all prompts there are."""
        error = ERROR[np.arange(72), choice].sum()
        return self.constant - 10 * self.slope * math.log10(error + 1e-12)

    def psnr(self, choice, number):
        """Of the first prompts; each is run once."""
        key = tuple(choice)
        noise = self.noise.setdefault(key, self.random.normal(0, self.within, PROMPTS))
        self.runs |= {(key, prompt) for prompt in range(number)}
        return self.mean(choice) + (self.offsets + noise)[:number]

    def surplus_of_all(self, choice):
        """Of all prompts there are: the mean reaches 30 dB, nine of ten 29."""
        mean = self.mean(choice)
        return min(mean - 30, mean - 1.2816 * math.hypot(self.between, self.within) - 29)


def search_once(seed, between, within, slope, confidence):
    settings = SearchSettings(prompts=["a"] * 8, min_psnr=30.0, confidence=confidence, gains="calls")
    prompts = Prompts(seed, between, within, slope)

    def tried(number, tail):
        return lambda choice: (None, surplus_of(settings, {"psnr": prompts.psnr(choice, number)}, tail=tail))

    screen, verify = tried(settings.num_screening, False), tried(PROMPTS, True)
    first = 10 ** (-first_aim(settings, CLOSE_WHEN_VERIFIED) / 10)
    rounds = rounds_until_kept(TABLES, screen, verify, first, settings.max_rounds)
    kept = [one for one in rounds if one.surplus >= 0]
    best = max(kept or rounds, key=lambda one: one.bound)
    return len(prompts.runs), bool(kept), best.surplus, prompts.surplus_of_all(best.choice)


@pytest.mark.parametrize(
    ("between", "within", "slope"),
    [(4.0, 1.0, 0.8), (1.0, 0.3, 0.8), (4.0, 1.0, 0.5), (4.0, 1.0, 1.3), (6.0, 1.0, 0.8)],
)
def test_a_plan_is_found_in_few_runs_and_keeps_its_promise_elsewhere(between, within, slope):
    runs, kept, surplus, elsewhere = np.array([search_once(s, between, within, slope, 0.8) for s in range(120)]).T
    assert kept.mean() > 0.97
    assert runs.mean() <= 2.3 * PROMPTS
    assert surplus.mean() < 2.4
    assert (elsewhere >= 0).mean() > 0.75


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_other_prompts_keep_the_promise_as_often_as_the_confidence_says(confidence):
    found = np.array([search_once(seed, 4.0, 1.0, 0.8, confidence) for seed in range(120)])
    assert confidence - 0.05 <= (found[:, 3] >= 0).mean() <= confidence + 0.35
