"""The best uniform setting: one method, one density, one share of dense steps, at a given mean PSNR.

What a plan is held against. The grid is searched on a few prompts, coarse shares of dense steps first; the best cells
are then run on all prompts, at the settings of the grid on either side of the wanted mean PSNR.
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

# PSNR in dB and density over the whole run of one setting.
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
    """

    family: Family
    dense_steps: float
    setting: float
    density: float

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
    return Crossing(family, dense_steps, setting, _between(at(low)[1], density, share))


def settle(crossing: Crossing, target: float, evaluate: Evaluate) -> dict[str, Any]:
    """The density over the run at which a method with so many dense steps has the wanted PSNR on all prompts.

    Run are the two settings of the grid on either side of the target, and the density is interpolated between them. So
    the figure is neither better nor worse than what the method does at that PSNR, and promises near each other share
    runs.

    Args:
        crossing: From the grid.
        target: Mean PSNR in dB over all prompts.
        evaluate: Runs a config on all prompts.
    """
    family, settings = crossing.family, crossing.family.settings
    runs: dict[float, tuple[float, float]] = {}

    def reaches(place: int) -> bool:
        setting = settings[place]
        if setting not in runs:
            runs[setting] = evaluate(config_at(family, crossing.dense_steps, setting))
        return runs[setting][0] >= target

    high = next((place for place, one in enumerate(settings) if one >= crossing.setting), len(settings) - 1)
    while not reaches(high) and high + 1 < len(settings):
        high += 1
    low = max(high - 1, 0)
    while reaches(low) and low > 0:
        low -= 1
    rows = [{"setting": one, "psnr": psnr, "density": found} for one, (psnr, found) in sorted(runs.items())]
    above = [found for psnr, found in runs.values() if psnr >= target]
    if not above:
        # No setting reaches it; dense attention does.
        density = 1.0
    elif len(above) == len(runs) or not family.continuous:
        density = min(above)
    else:
        density = density_at(target, list(runs.values()))
    return {**crossing.to_dict(), "density": density, "runs": rows}


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


def _share(low: float, high: float, target: float) -> float:
    return min(max((target - low) / max(high - low, 1e-9), 0.0), 1.0)


def _between(low: float, high: float, share: float) -> float:
    """Geometric interpolation."""
    return float(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
