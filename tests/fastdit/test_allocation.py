"""Allocation: exact on tables with known optimum, never past its bound, and a front that contains no bad point."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.errors import InfeasibleError, InvalidInputError
from fastdit.search.allocation import allocate, pareto_front, total


def brute_force(aim, weight, bound):
    """Least aim over all choices within the bound."""
    options = [np.flatnonzero(~np.isnan(row)) for row in aim]
    sums = ((total(aim, np.array(c)), total(weight, np.array(c))) for c in itertools.product(*options))
    return min(value for value, used in sums if used <= bound * (1 + 1e-12))


@st.composite
def tables(draw):
    items, options = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    error, cost = rng.integers(0, 20, (2, items, options)).astype(float)
    error[:, 1:][rng.random((items, options - 1)) < 0.2] = np.nan
    return error, cost, draw(st.floats(0, 1))


@settings(max_examples=60)
@given(tables())
def test_equals_brute_force_both_ways(case):
    error, cost, share = case
    cost = np.where(np.isnan(error), np.nan, cost)
    for aim, weight, name in ((cost, error, "max_error"), (error, cost, "max_cost")):
        low, high = np.nanmin(weight, 1).sum(), np.nanmax(weight, 1).sum()
        bound = low + share * (high - low)
        choice = allocate(error, cost, **{name: bound})
        assert total(weight, choice) <= bound * (1 + 1e-12)
        assert total(aim, choice) == pytest.approx(brute_force(aim, weight, bound), abs=1e-9)


def test_the_bound_is_met_where_it_is_met_exactly():
    # .1 + .2 passes .3 by rounding alone.
    choice = allocate([[0.0, 0.1], [0.0, 0.2]], [[1.0, 0.0], [1.0, 0.0]], max_error=0.3)
    assert choice.tolist() == [1, 1]


def test_a_bound_that_is_missed_by_little_is_missed():
    choice = allocate([[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], max_error=2.0 - 1e-9)
    assert sorted(choice.tolist()) == [0, 1]


def test_options_that_are_not_available_are_not_chosen():
    choice = allocate([[np.nan, 3.0], [1.0, np.nan]], [[0.0, 5.0], [5.0, 0.0]], max_error=10.0)
    assert choice.tolist() == [1, 0]


def test_many_items_stay_within_the_bound_and_close_to_the_front():
    rng = np.random.default_rng(0)
    cost = np.tile(np.linspace(0.02, 1, 12), (600, 1))
    error = rng.lognormal(-4, 2, (600, 1)) * (1 / cost - 1)
    bound = 0.05 * error[:, 0].sum()
    choice = allocate(error, cost, max_error=bound)
    assert total(error, choice) <= bound
    # Between the last corner of the convex front that keeps the bound and the line that bounds every choice below.
    front = pareto_front(error, cost, max_points=10**6)
    place = next(i for i, point in enumerate(front) if point.error <= bound)
    before, after = front[place - 1], front[place]
    line = before.cost + (after.cost - before.cost) * (before.error - bound) / (before.error - after.error)
    assert line - 1e-6 <= total(cost, choice) <= after.cost


# Share of keys that hold 95 % of the mass, over heads: median, 75 and 95 % quantiles of published profiles (SVOO).
PROFILES = {
    "wan-1.3b": (0.05, 0.18, 0.65),
    "wan-14b": (0.14, 0.37, 0.86),
    "wan-14b-i2v": (0.10, 0.30, 0.85),
    "hunyuan": (0.05, 0.19, 0.74),
    "hunyuan-i2v": (0.06, 0.22, 0.73),
}


@pytest.mark.parametrize("name", PROFILES)
def test_per_head_allocation_beats_a_uniform_density_threefold(name):
    rng = np.random.default_rng(1)
    places, values = (0, 0.5, 0.75, 0.95, 1), (0.005, *PROFILES[name], 1.0)
    needed = np.exp(np.interp(rng.random(960), places, np.log(values)))
    densities = np.array([0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    # A head is served or it is not; five in a hundred may be not, as with the uniform density.
    error = (densities < needed[:, None]).astype(float)
    cost = np.tile(densities, (len(needed), 1))
    bound = 0.05 * len(needed)
    uniform = densities[error.sum(0) <= bound].min()
    choice = allocate(error, cost, max_error=bound)
    assert total(error, choice) <= bound
    assert 3 * total(cost, choice) / len(needed) <= uniform < 1


@given(tables())
@settings(max_examples=60)
def test_no_choice_lies_below_the_front(case):
    error, cost, _ = case
    cost = np.where(np.isnan(error), np.nan, cost)
    front = pareto_front(error, cost)
    costs, errors = np.array([p.cost for p in front]), np.array([p.error for p in front])
    assert (np.diff(costs) > 0).all()
    assert (np.diff(errors) < 0).all()
    for choice in itertools.product(*(np.flatnonzero(~np.isnan(row)) for row in error)):
        used, wrong = total(cost, np.array(choice)), total(error, np.array(choice))
        if used <= costs[-1]:
            assert wrong >= np.interp(used, costs, errors) - 1e-9


def test_a_long_front_is_thinned_and_keeps_its_ends():
    rng = np.random.default_rng(2)
    error, cost = rng.random((2, 50, 6))
    whole, thin = pareto_front(error, cost, max_points=10**6), pareto_front(error, cost, max_points=5)
    assert len(whole) > 50
    assert len(thin) == 5
    assert (thin[0].cost, thin[-1].cost) == (whole[0].cost, whole[-1].cost)


@pytest.mark.parametrize(
    ("error", "cost", "bounds", "message"),
    [
        ([[1.0]], [[1.0, 2.0]], {"max_cost": 1}, "equal shapes"),
        ([[np.nan]], [[1.0]], {"max_cost": 1}, "item 0 has no option"),
        ([[np.inf]], [[1.0]], {"max_cost": 1}, "infinite"),
        ([[1.0]], [[-1.0]], {"max_cost": 1}, "negative"),
        ([[1.0]], [[1.0]], {}, "exactly one"),
        ([[1.0]], [[1.0]], {"max_cost": 1, "max_error": 1}, "exactly one"),
        ([[1.0]], [[1.0]], {"max_cost": float("nan")}, "at least 0"),
    ],
)
def test_bad_tables_are_refused(error, cost, bounds, message):
    with pytest.raises(InvalidInputError, match=message):
        allocate(error, cost, **bounds)


def test_a_bound_out_of_reach_names_what_can_be_reached():
    with pytest.raises(InfeasibleError, match=r"least that can be reached is 3"):
        allocate([[1.0, 2.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], max_error=2.5)


def test_without_a_solution_of_the_solver_the_choice_is_that_of_a_multiplier(monkeypatch):
    rng = np.random.default_rng(1)
    cost = np.tile(np.linspace(0.02, 1, 12), (60, 1))
    error = rng.lognormal(-4, 2, (60, 1)) * (1 / cost - 1)
    bound = 0.05 * error[:, 0].sum()
    best = total(cost, allocate(error, cost, max_error=bound))
    monkeypatch.setattr("fastdit.search.allocation._solve", lambda *_: None)
    choice = allocate(error, cost, max_error=bound)
    assert total(error, choice) <= bound
    assert best <= total(cost, choice) + 1e-9 <= best + 1
    least = np.nanmin(error, 1).sum()
    assert total(error, allocate(error, cost, max_error=least)) <= least
