"""The best uniform setting, where PSNR is a known function of density and dense steps."""

import math

import pytest

from fastdit_eval.uniform_setting import Crossing, density_at, find_crossing, search_grid, settle, uniform_families

DENSITIES = (0.03, 0.06, 0.12, 0.2, 0.35, 0.5, 0.7)
FINE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
QUALITY = {"adaptive": 0.0, "pyramid": 3.0, "static": -1.0}


class World:
    """`PSNR = 40 + quality + 8 log2(density) + 30 * dense steps`, with the density of the sparse steps."""

    def __init__(self):
        self.seen = []

    def __call__(self, config):
        share = config.schedule.dense_steps
        density = getattr(config, "density", None) or config.pattern.parts[0].frames / 10
        self.seen.append(config)
        psnr = 40 + QUALITY[config.method] + 8 * math.log2(density) + 30 * share
        return psnr, share + (1 - share) * density


def families():
    return uniform_families(32, 16, DENSITIES, windows=(1, 2, 4, 8))


def truth(target):
    """The least density of the best method, over shares of dense steps."""
    return min(s + (1 - s) * 2 ** ((target - 43 - 30 * s) / 8) for s in FINE)


@pytest.mark.parametrize("target", [20.0, 28.0, 36.0])
def test_the_grid_finds_the_best_cell_and_leaves_out_hopeless_ones(target):
    world = World()
    found = search_grid(families(), FINE[::2], FINE, target, world)
    assert found[0].family.name == "pyramid"
    assert found[0].density == pytest.approx(truth(target), rel=0.1)
    assert len(world.seen) < 45
    assert [one.density for one in found] == sorted(one.density for one in found)


@pytest.mark.parametrize("harder", [0.0, 1.5, 9.0, -9.0])
def test_settling_ends_at_the_wanted_psnr(harder):
    """All prompts are harder, or easier, than those of the grid; settings on either side of the target are run."""
    world = World()
    first = search_grid(families(), FINE[::2], FINE, 28.0, world)[0]

    def on_all(config):
        psnr, density = world(config)
        return psnr - harder, density

    best = settle(first, 28.0, on_all)
    share = best["dense_steps"]
    assert best["density"] == pytest.approx(share + (1 - share) * 2 ** ((28 + harder - 43 - 30 * share) / 8), rel=0.05)
    assert len(best["runs"]) <= 4
    assert {run["setting"] for run in best["runs"]} <= set(DENSITIES)
    assert min(run["psnr"] for run in best["runs"]) < 28.0 <= max(run["psnr"] for run in best["runs"])


def test_patterns_settle_at_the_first_that_reaches():
    family = families()[2]
    world = World()
    crossing = find_crossing(family, 0.0, 25.0, world)
    assert crossing.setting == 4
    best = settle(crossing, 25.0, world)
    assert best["density"] == pytest.approx(0.4)
    assert find_crossing(family, 0.0, 60.0, world) is None


def test_nothing_is_made_up_where_all_settings_lie_on_one_side():
    world = World()
    crossing = Crossing(families()[1], 0.4, 0.06, 0.44)
    least = settle(crossing, 10.0, world)
    assert least["density"] == pytest.approx(0.4 + 0.6 * 0.03)
    assert settle(crossing, 99.0, world)["density"] == 1.0


def test_what_costs_more_than_the_limit_is_not_looked_for():
    world = World()
    assert find_crossing(families()[0], 0.5, 30.0, world, limit=0.4) is None
    assert world.seen == []


def test_density_at_a_psnr_is_between_its_neighbours():
    points = [(20.0, 0.1), (30.0, 0.4), (35.0, 0.9)]
    assert density_at(25.0, points) == pytest.approx(0.2)
    assert density_at(30.0, points) == pytest.approx(0.4)
    assert density_at(32.0, [(31.0, 0.3)]) == 0.3
    # Beyond all points: along the two nearest.
    assert density_at(15.0, points) < 0.1
