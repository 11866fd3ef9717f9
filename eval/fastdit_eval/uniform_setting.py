"""The best uniform setting: one method, one density, one share of dense steps, at a given mean PSNR.

What a plan is held against. The grid is searched on a few prompts, coarse shares of dense steps first; the winner is
then run on all prompts, its density moved until the mean PSNR is the wanted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdit.config import AdaptiveConfig, AttentionConfig, PyramidConfig, StaticConfig
from fastdit.schedule import Schedule

# Shares of dense steps within this factor of the best are looked at more closely.
NEAR_THE_BEST = 1.2
# How close the mean PSNR of the winner must come, in dB, before the rest is interpolated.
CLOSE = 0.15
# Within this of the target the slope of the grid serves: a fifth of it off would be 1 % of the density.
CLOSE_BY_SLOPE = 0.6
MAX_MOVES = 3

# Mean PSNR in dB and density over the whole run of one setting.
Evaluate = Callable[[AttentionConfig], tuple[float, float]]


@dataclass(frozen=True)
class Family:
    """A method with settings of rising density.

    Args:
        name: Of the method.
        make: The config of a setting; gets the setting and the schedule.
        settings: Rising.
        continuous: Whether anything between two settings is one, too.
    """

    name: str
    make: Callable[[float, Schedule], AttentionConfig]
    settings: tuple[float, ...]
    continuous: bool


@dataclass(frozen=True)
class Crossing:
    """Where a family reaches the wanted PSNR.

    Args:
        family: Which.
        dense_steps: Share of dense steps.
        setting: Density, or the family's own measure.
        density: Over the whole run, interpolated.
        slope: Growth of the logarithm of the density with PSNR, per dB; `None` where one setting alone is known.
    """

    family: Family
    dense_steps: float
    setting: float
    density: float
    slope: float | None = None

    @property
    def config(self) -> AttentionConfig:
        """The setting as a config."""
        return config_at(self.family, self.dense_steps, self.setting)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "method": self.family.name,
            "dense_steps": self.dense_steps,
            "setting": self.setting,
            "density": self.density,
        }


def uniform_families(
    q_tile: int, kv_tile: int, densities: Sequence[float], windows: Sequence[int] = (1, 2, 3, 5, 8)
) -> tuple[Family, ...]:
    """Adaptive and pyramid by their density, and the window by its reach in frames.

    Args:
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        densities: Rising.
        windows: Rising.
    """
    tiles = {"q_tile": q_tile, "kv_tile": kv_tile, "min_tokens": 0}

    def adaptive(value: float, schedule: Schedule) -> AttentionConfig:
        return AdaptiveConfig(density=value, schedule=schedule, **tiles)  # type: ignore[arg-type]  # all are ints

    def pyramid(value: float, schedule: Schedule) -> AttentionConfig:
        return PyramidConfig(density=value, schedule=schedule, **tiles)  # type: ignore[arg-type]

    def window(value: float, schedule: Schedule) -> AttentionConfig:
        return StaticConfig(pattern=f"window:frames={int(value)}|sink", schedule=schedule, **tiles)  # type: ignore[arg-type]

    return (
        Family("adaptive", adaptive, tuple(densities), True),
        Family("pyramid", pyramid, tuple(densities), True),
        Family("window and sink", window, tuple(map(float, windows)), False),
    )


def config_at(family: Family, dense_steps: float, setting: float) -> AttentionConfig:
    """The config of one cell of the grid; no layer is dense as a whole."""
    return family.make(setting, Schedule(dense_steps=dense_steps, dense_layers=()))


def search_grid(
    families: Sequence[Family], coarse: Sequence[float], fine: Sequence[float], target: float, evaluate: Evaluate
) -> list[Crossing]:
    """Crossings of all families at coarse shares of dense steps, then at fine ones beside the good ones; best first.

    Args:
        families: Methods.
        coarse: Shares of dense steps to begin with, rising.
        fine: All shares, rising.
        target: Mean PSNR in dB.
        evaluate: Runs a config on the few prompts.
    """
    found: dict[tuple[str, float], Crossing | None] = {}

    def best() -> float:
        return min((one.density for one in found.values() if one is not None), default=math.inf)

    def look(family: Family, share: float) -> None:
        if (family.name, share) not in found:
            limit = best() * NEAR_THE_BEST
            found[family.name, share] = find_crossing(family, share, target, evaluate, limit)

    for share in coarse:
        for family in families:
            look(family, share)
    for family in families:
        near = [one for one in found.values() if one is not None and one.family.name == family.name]
        for one in near:
            if one.density <= best() * NEAR_THE_BEST:
                place = list(fine).index(one.dense_steps)
                for beside in (place - 1, place + 1):
                    if 0 <= beside < len(fine):
                        look(family, fine[beside])
    return sorted((one for one in found.values() if one is not None), key=lambda one: one.density)


def find_crossing(
    family: Family, dense_steps: float, target: float, evaluate: Evaluate, limit: float = math.inf
) -> Crossing | None:
    """The least setting with `PSNR >= target`, interpolated between the two around it.

    Args:
        family: Method.
        dense_steps: Share of dense steps.
        target: Mean PSNR in dB.
        evaluate: Runs a config.
        limit: Densities over the run above this are of no interest.

    Returns:
        `None` if no setting reaches the target below the limit.
    """
    known: dict[int, tuple[float, float]] = {}

    def at(place: int) -> tuple[float, float]:
        if place not in known:
            known[place] = evaluate(config_at(family, dense_steps, family.settings[place]))
        return known[place]

    if dense_steps > limit:
        return None
    low, high = -1, len(family.settings)
    while high - low > 1:
        middle = (low + high) // 2
        psnr, density = at(middle)
        if psnr >= target:
            high = middle
        elif density > limit:
            return None
        else:
            low = middle
    if high == len(family.settings):
        return None
    density = at(high)[1]
    if low < 0 or not family.continuous:
        return Crossing(family, dense_steps, family.settings[high], density) if density <= limit else None
    share = _share(at(low)[0], at(high)[0], target)
    setting = _between(family.settings[low], family.settings[high], share)
    slope = math.log(density / at(low)[1]) / max(at(high)[0] - at(low)[0], 1e-9)
    return Crossing(family, dense_steps, setting, _between(at(low)[1], density, share), slope)


def settle(crossing: Crossing, target: float, evaluate: Evaluate) -> dict[str, Any]:
    """The density over the run at which a setting has the wanted PSNR on all prompts.

    Where the setting is close to the target, the rest is taken along the slope that the grid has found; else it is
    moved until it is, and the rest interpolated between the two nearest runs. So the figure is neither better nor worse
    than what the setting does at that PSNR.

    Args:
        crossing: From the grid.
        target: Mean PSNR in dB over all prompts.
        evaluate: Runs a config on all prompts.
    """
    family, share = crossing.family, crossing.dense_steps
    runs: dict[float, tuple[float, float]] = {crossing.setting: evaluate(crossing.config)}
    gap, density = target - runs[crossing.setting][0], runs[crossing.setting][1]
    along_slope = crossing.slope is not None and abs(gap) <= CLOSE_BY_SLOPE
    while len(runs) <= MAX_MOVES and not along_slope:
        nearest = min(runs, key=lambda one: abs(runs[one][0] - target))
        around = runs[nearest][0] - target
        if abs(around) <= CLOSE and len(runs) > 1:
            break
        setting = _next_setting(family, runs, target)
        if setting is None or setting in runs:
            break
        runs[setting] = evaluate(config_at(family, share, setting))
    rows = [{"setting": one, "psnr": psnr, "density": found} for one, (psnr, found) in sorted(runs.items())]
    settled = density_at(target, list(runs.values()))
    if along_slope and crossing.slope is not None:
        settled = min(1.0, density * math.exp(crossing.slope * gap))
    return {**crossing.to_dict(), "density": settled, "runs": rows}


def density_at(target: float, points: Sequence[tuple[float, float]]) -> float:
    """Density at a PSNR: linear in its logarithm between the two nearest points, one on either side if there are.

    Args:
        target: dB.
        points: PSNR and density.
    """
    below = [point for point in points if point[0] < target]
    above = [point for point in points if point[0] >= target]
    if below and above:
        first, second = max(below), min(above)
    elif len(points) > 1:
        first, second = sorted(sorted(points, key=lambda point: abs(point[0] - target))[:2])
    else:
        return points[0][1]
    if second[0] == first[0]:
        return min(first[1], second[1])
    share = (target - first[0]) / (second[0] - first[0])
    return float(np.clip(_between(first[1], second[1], share), 0.0, 1.0))


def _next_setting(family: Family, runs: dict[float, tuple[float, float]], target: float) -> float | None:
    """A setting nearer to the target: interpolated, or 6 dB for each doubling where there is one run alone."""
    ordered = sorted(runs)
    if not family.continuous:
        up = all(psnr < target for psnr, _ in runs.values())
        down = all(psnr >= target for psnr, _ in runs.values())
        place = family.settings.index(ordered[-1] if up else ordered[0]) + (1 if up else -1)
        return family.settings[place] if (up or down) and 0 <= place < len(family.settings) else None
    if len(runs) == 1:
        psnr = runs[ordered[0]][0]
        wanted = ordered[0] * 2 ** ((target - psnr) / 6 + math.copysign(0.03, target - psnr))
    else:
        nearest = sorted(ordered, key=lambda one: abs(runs[one][0] - target))[:2]
        first, second = sorted(nearest, key=lambda one: runs[one][0])
        share = (target - runs[first][0]) / max(runs[second][0] - runs[first][0], 1e-6)
        wanted = _between(first, second, min(max(share, -2.0), 3.0))
    return float(min(max(wanted, 0.01), 1.0))


def _share(low: float, high: float, target: float) -> float:
    return min(max((target - low) / max(high - low, 1e-9), 0.0), 1.0)


def _between(low: float, high: float, share: float) -> float:
    """Geometric interpolation."""
    return float(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
