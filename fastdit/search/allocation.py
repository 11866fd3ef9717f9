"""Which option each item takes: least cost under a bound on the error, or least error under a bound on the cost.

A multiple-choice knapsack. Bounded problems are solved exactly, as a mixed-integer linear programme (HiGHS through
SciPy); the whole front comes from the convex hulls of the items, exactly where it is convex.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdit.errors import InfeasibleError, InvalidInputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
# What the sum of chosen values may pass its bound by: rounding of the sum itself, nothing else.
ROUNDING = 1e-12


@dataclass(frozen=True)
class FrontPoint:
    """One allocation of the front.

    Args:
        cost: Sum of the chosen costs.
        error: Sum of the chosen errors.
        choice: Option of each item, int64 `[items]`.
    """

    cost: float
    error: float
    choice: IntArray


def allocate(
    error: ArrayLike,
    cost: ArrayLike,
    *,
    max_cost: float | None = None,
    max_error: float | None = None,
    relative_gap: float = 1e-6,
    time_limit: float = 60.0,
) -> IntArray:
    """Choose one option per item: minimise the summed cost with summed error <= `max_error`, or the other way round.

    Args:
        error: `[items, options]`, finite and >= 0, or NaN where an item has no such option. Errors must be additive,
            e.g. squared.
        cost: `[items, options]`, likewise; an option is available where neither is NaN.
        max_cost: Bound on the summed cost; minimises the error.
        max_error: Bound on the summed error; minimises the cost. Exactly one of the two is given.
        relative_gap: The solver may stop once it has shown that nothing is better by more than this share.
        time_limit: Seconds after which the best choice found so far is taken.

    Returns:
        The option of each item, int64 `[items]`. The bound holds exactly.

    Raises:
        InvalidInputError: Shapes differ, an item has no option, a value is negative or infinite, or not exactly one
            bound is given.
        InfeasibleError: No choice meets the bound; names the least that can be reached.
    """
    errors, costs = check_tables(error, cost)
    if (max_cost is None) == (max_error is None):
        raise InvalidInputError(f"max_cost={max_cost}, max_error={max_error}: accepted is exactly one of them")
    bound, name = (max_error, "max_error") if max_cost is None else (max_cost, "max_cost")
    assert bound is not None, "one of them is given"
    if math.isnan(bound) or bound < 0:
        raise InvalidInputError(f"{name}={bound}: accepted is a number of at least 0")
    weight, aim = (errors, costs) if max_cost is None else (costs, errors)
    least = math.fsum(np.nanmin(weight, axis=1))
    if least > bound * (1 + ROUNDING):
        raise InfeasibleError(f"{name}={bound:g} cannot be met: the least that can be reached is {least:g}")
    best = _cheapest(weight, aim)
    if math.isinf(bound):
        return _cheapest(aim, weight)
    for slack in (0.0, 1e-7, 1e-6, 1e-5):
        choice = _solve(aim, weight, bound * (1 - slack), relative_gap, time_limit)
        # The solver keeps its constraints to about 1e-6 of their scale; a promise is kept exactly.
        if choice is not None and total(weight, choice) <= bound * (1 + ROUNDING):
            return min((choice, best), key=lambda one: total(aim, one))
    # The solver ran out of time or into its tolerances: what a multiplier gives is close to the best.
    corner = _corner(aim, weight, bound)
    return best if corner is None else min((corner, best), key=lambda one: total(aim, one))


def pareto_front(error: ArrayLike, cost: ArrayLike, max_points: int = 200) -> list[FrontPoint]:
    """Corners of the convex front of summed cost against summed error, cheapest first.

    Each item's options lie on a lower convex hull; taking the hulls' edges in the order of error saved per cost gives
    exactly the allocations that minimise `cost + multiplier * error` for some multiplier.

    Args:
        error: As in `allocate`.
        cost: As in `allocate`.
        max_points: Where there are more corners, this many of them at even distances, both ends included.
    """
    errors, costs = check_tables(error, cost)
    if max_points < 2:
        raise InvalidInputError(f"max_points={max_points}: accepted is an integer of at least 2")
    choice = _cheapest(costs, errors)
    edges = _edges(errors, costs)
    kept = set(np.linspace(0, len(edges), min(max_points, len(edges) + 1)).round().astype(int).tolist())
    points = [FrontPoint(total(costs, choice), total(errors, choice), choice.copy())]
    for number, (item, option) in enumerate(edges, start=1):
        choice[item] = option
        if number in kept:
            points.append(FrontPoint(total(costs, choice), total(errors, choice), choice.copy()))
    return points


def total(table: FloatArray, choice: IntArray) -> float:
    """Sum of the chosen values, rounded once."""
    return math.fsum(table[np.arange(len(choice)), choice])


def check_tables(error: ArrayLike, cost: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both tables as float64 with NaN wherever an option is not available.

    Raises:
        InvalidInputError: As `allocate` says.
    """
    errors, costs = np.asarray(error, np.float64), np.asarray(cost, np.float64)
    if errors.ndim != 2 or errors.shape != costs.shape or errors.size == 0:
        raise InvalidInputError(
            f"error {errors.shape}, cost {costs.shape}: accepted are equal shapes [items, options], none of them 0"
        )
    missing = np.isnan(errors) | np.isnan(costs)
    if missing.all(1).any():
        raise InvalidInputError(f"item {int(missing.all(1).argmax())} has no option: every item needs one without NaN")
    errors, costs = np.where(missing, np.nan, errors), np.where(missing, np.nan, costs)
    for name, table in (("error", errors), ("cost", costs)):
        if np.isinf(table).any() or (table < 0).any():
            raise InvalidInputError(f"{name} has an infinite or negative value: accepted are finite numbers >= 0, NaN")
    return errors, costs


def _cheapest(aim: FloatArray, other: FloatArray) -> IntArray:
    """The option of least `aim` for each item, of equal ones that of least `other`."""
    least = aim == np.nanmin(aim, axis=1, keepdims=True)
    choice: IntArray = np.nanargmin(np.where(least, other, np.nan), axis=1)
    return choice


def _edges(error: FloatArray, cost: FloatArray) -> list[tuple[int, int]]:
    """Steps along the front from the cheapest choice on: items and the option they go on to."""
    edges = []
    for item in range(len(cost)):
        hull = _hull(cost[item], error[item])
        for place, (here, there) in enumerate(itertools.pairwise(hull)):
            gain = (error[item, here] - error[item, there]) / (cost[item, there] - cost[item, here])
            edges.append((-gain, item, place, there))
    return [(item, option) for _, item, _, option in sorted(edges)]


def _corner(aim: FloatArray, weight: FloatArray, bound: float) -> IntArray | None:
    """The first corner of the front within the bound; `None` if rounding leaves none."""
    choice = _cheapest(aim, weight)
    used = total(weight, choice)
    for item, option in [(0, int(choice[0])), *_edges(weight, aim)]:
        used += weight[item, option] - weight[item, choice[item]]
        choice[item] = option
        if used <= bound and total(weight, choice) <= bound * (1 + ROUNDING):
            return choice
    return None


def _hull(cost: FloatArray, error: FloatArray) -> list[int]:
    """Options on the lower convex hull of one item, by rising cost and falling error."""
    hull: list[int] = []
    for option in np.lexsort((error, cost)):
        if np.isnan(cost[option]) or (hull and error[option] >= error[hull[-1]]):
            continue
        while len(hull) > 1:
            first, second = hull[-2], hull[-1]
            rise = (cost[second] - cost[first]) * (error[option] - error[first])
            if rise > (error[second] - error[first]) * (cost[option] - cost[first]):
                break
            hull.pop()
        hull.append(int(option))
    return hull


def _solve(aim: FloatArray, weight: FloatArray, bound: float, gap: float, time_limit: float) -> IntArray | None:
    """The integer programme; `None` if the solver found nothing."""
    # Imported here, because importing fastdit need not wait for it.
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    # What passes the bound even if all other items take their least can never be chosen.
    least = np.nanmin(weight, axis=1, keepdims=True)
    items, options = np.nonzero(weight - least <= (bound - least.sum()) * (1 + 1e-9) + 1e-12 * bound)
    values, weights = aim[items, options], weight[items, options]
    # HiGHS has absolute tolerances, so both rows are brought to the scale of 1.
    scale = bound if bound > 0 else max(float(weights.max()), 1.0)
    value_scale = max(float(values.max()), np.finfo(np.float64).tiny)
    one_each = sparse.csr_array((np.ones(len(items)), (items, np.arange(len(items)))))
    solved = milp(
        values / value_scale,
        integrality=np.ones(len(items)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(weights[None] / scale, -np.inf, bound / scale),
        ],
        options={"mip_rel_gap": gap, "time_limit": time_limit},
    )
    if solved.x is None:
        return None
    choice = np.zeros(len(aim), np.int64)
    best = np.zeros(len(aim))
    for item, option, chosen in zip(items, options, solved.x, strict=True):
        if chosen > best[item]:
            best[item], choice[item] = chosen, option
    return choice
