"""Rounds of trying and verifying: the bound on the predicted error moves until a promise is kept closely.

Plans are tried on a few prompts (screening) and verified on all. A verification tells by how much the few prompts
differ from all, and from then on screening counts with that offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastdit.plan import Plan
from fastdit.search.allocation import IntArray, allocate
from fastdit.search.tables import SearchTables

# The first plan is verified at once: without an offset screening says little, prompts differ by several dB. Later ones
# are verified when screening sees them keep the promise by no more than this, in dB. On two prompts it is off by about
# one; a narrower window costs runs and leaves searches without a plan (simulated, tests/fastdit/test_search_rounds.py).
CLOSE_ENOUGH = 4.0
# A verified plan ends the search when it keeps the promise by no more than this.
CLOSE_WHEN_VERIFIED = 4.0
# Allocations tried at most: those that give a plan which is known already take no runs.
MAX_TRIALS = 60
MAX_VERIFIED = 6
# A kept and a failed bound closer than this have no plan of interest between them.
SAME_BOUND = 1.001


@dataclass(frozen=True, eq=False)
class Round:
    """One allocation that was run.

    Args:
        bound: On the predicted error.
        choice: Mode of each item.
        plan: What was allocated, with what was measured.
        surplus: Quality over the promise with its margin, in dB; of the screened prompts until it is verified.
        verified: Whether it is that of all prompts.
    """

    bound: float
    choice: IntArray
    plan: Plan
    surplus: float
    verified: bool = False


Trial = Callable[[IntArray], tuple[Plan, float]]


def rounds_until_kept(
    tables: SearchTables, screen: Trial, verify: Trial, first_bound: float, max_rounds: int
) -> list[Round]:
    """Allocate, try and verify until the promise is kept closely, or nothing is left to try.

    Args:
        tables: What is allocated from.
        screen: Runs a choice on few prompts, and returns its plan and its surplus in dB.
        verify: The same on all prompts.
        first_bound: On the predicted error, of the first round.
        max_rounds: Choices that are tried at most.

    Returns:
        The verified rounds, at least one.
    """
    rounds: list[Round] = []
    offset: float | None = None
    bound = first_bound
    for _ in range(MAX_VERIFIED):
        found = _screened(tables, screen, rounds, bound, offset, max_rounds)
        if found.verified:
            # Nothing closer is left to try.
            break
        plan, surplus = verify(found.choice)
        offset = surplus - found.surplus
        done = replace(found, plan=plan, surplus=surplus, verified=True)
        rounds[:] = [done if np.array_equal(one.choice, found.choice) else one for one in rounds]
        if 0 <= surplus <= CLOSE_WHEN_VERIFIED or _at_the_end(tables, done):
            break
        bound = next_bound(_shifted(rounds, offset))
    return [one for one in rounds if one.verified]


def _screened(
    tables: SearchTables, screen: Trial, rounds: list[Round], bound: float, known_offset: float | None, max_rounds: int
) -> Round:
    """The round to verify next: one that is thought to keep the promise closely, or the most promising one."""
    offset = 0.0 if known_offset is None else known_offset
    low, high = (-math.inf, math.inf) if known_offset is None else (0.0, CLOSE_ENOUGH)
    for _ in range(MAX_TRIALS):
        least = float(np.nansum(np.nanmin(tables.error, axis=1)))
        choice = allocate(tables.error, tables.cost, max_error=max(bound, least))
        known = next((one for one in rounds if np.array_equal(one.choice, choice)), None)
        if known is None:
            if _tried(rounds) >= max_rounds:
                break
            plan, surplus = screen(choice)
            rounds.append(Round(bound, choice, plan, surplus))
        elif known.bound != bound:
            rounds.append(replace(known, bound=bound))
        shifted = _shifted(rounds, offset)
        last = next(one for one in shifted if np.array_equal(one.choice, choice))
        close = low <= last.surplus <= high and not last.verified
        if close or _at_the_end(tables, replace(last, bound=bound)):
            return next(one for one in rounds if np.array_equal(one.choice, choice))
        bound = next_bound(shifted)
        if any(max(bound, one.bound) < min(bound, one.bound) * SAME_BOUND for one in shifted):
            break
    return _most_promising(rounds, _shifted(rounds, offset))


def _most_promising(rounds: Sequence[Round], shifted: Sequence[Round]) -> Round:
    """What to verify when no round comes close: the cheapest that seems to keep the promise, else the best."""
    kept = [number for number, one in enumerate(shifted) if one.surplus >= 0]
    if kept:
        return rounds[max(kept, key=lambda number: shifted[number].bound)]
    return rounds[max(range(len(rounds)), key=lambda number: (shifted[number].surplus, -shifted[number].bound))]


def _shifted(rounds: Sequence[Round], offset: float) -> list[Round]:
    """Rounds with what is known or thought of all prompts."""
    return [one if one.verified else replace(one, surplus=one.surplus + offset) for one in rounds]


def _tried(rounds: Sequence[Round]) -> int:
    return len({one.choice.tobytes() for one in rounds})


def _at_the_end(tables: SearchTables, one: Round) -> bool:
    """Whether a round kept the promise with the cheapest plan there is, or failed it with the best."""
    least, most = (float(np.nansum(end(tables.error, axis=1))) for end in (np.nanmin, np.nanmax))
    return (one.surplus >= 0 and one.bound >= most) or (one.surplus < 0 and one.bound <= least)


def next_bound(rounds: Sequence[Round]) -> float:
    """The bound to try next: between the largest that kept the promise and the failed one next above it.

    Where one of the two is missing, as far from the other as its surplus says. Quality need not fall evenly with the
    bound: failed rounds below a kept one say nothing any more.
    """
    kept = max((one for one in rounds if one.surplus >= 0), key=lambda one: one.bound, default=None)
    above = [one for one in rounds if one.surplus < 0 and (kept is None or one.bound > kept.bound)]
    failed = min(above, key=lambda one: one.bound, default=None)
    aim = 0.5 * CLOSE_ENOUGH
    if kept is not None and failed is not None:
        low, high = math.log(kept.bound), math.log(failed.bound)
        share = (kept.surplus - aim) / (kept.surplus - failed.surplus)
        return math.exp(low + min(max(share, 0.1), 0.9) * (high - low))
    last = kept or failed
    assert last is not None, "every round is kept or failed"
    # A little further than the surplus says, so that the promise comes to lie between two rounds.
    return last.bound * 10 ** ((last.surplus - aim) / 10)
