"""How far a search is, read from its run directory while it runs or after it was stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdit.search.results import DAMAGED, SETTINGS
from fastdit.search.tables import steps_in_phases

# A whole file may hold something else than figures, too.
UNREADABLE = (*DAMAGED, TypeError)
ROUND = re.compile(r"verify_([0-9a-f]{16})_\d+\.npz")


@dataclass(frozen=True, kw_only=True)
class RoundProgress:
    """A plan that is or was being verified.

    Args:
        digest: First 16 digits of the plan's digest, without what was measured of it.
        psnr: Mean over its runs so far, in dB.
        ssim: Likewise; `None` where the frames are too small for it.
        density: Likewise.
        runs: Runs so far.
    """

    digest: str
    psnr: float
    ssim: float | None
    density: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """What a run directory holds.

    Args:
        measured: Prompts measured on, and how many there are to be.
        phases: Phases weighed by sparse runs, and how many there are to be: with gains of the frames the first alone,
            else those with steps.
        verified_runs: Runs that verify one plan.
        noise_floor_psnr: In dB; `None` until it is known.
        rounds: Plans in the order in which they were first verified.
    """

    measured: tuple[int, int] = (0, 0)
    phases: tuple[int, int] = (0, 0)
    verified_runs: int = 0
    noise_floor_psnr: float | None = None
    rounds: tuple[RoundProgress, ...] = ()


def read_progress(folder: Path) -> SearchProgress:
    """What a search has finished so far; nothing if the folder is missing or holds no search.

    Args:
        folder: The `run_directory` of `find_plan`.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_bytes())
        prompts, measured, ends = len(settings["prompts"]), settings["num_measured"], list(settings["phases"])
        by_frames = settings.get("gains") == "frames"
    except (OSError, ValueError, KeyError, TypeError):
        return SearchProgress()
    measured = min(prompts, measured)
    floor = next(_figures(folder, "noise_floor_*.npz"), None)
    weighed = len({path.name.split("_")[1] for path in folder.glob("phase_*_*.npz")})
    return SearchProgress(
        measured=(len(list(folder.glob("measured_*.npz"))), measured),
        phases=(weighed, 1 if by_frames else _with_steps(folder, ends)),
        verified_runs=prompts - measured or 1,
        noise_floor_psnr=None if floor is None else floor[1]["psnr"],
        rounds=_rounds(folder),
    )


def _with_steps(folder: Path, ends: list[float]) -> int:
    """How many phases have steps, as soon as it is known how many steps there are; in short runs some have none."""
    try:
        with np.load(folder / "steps.npz", allow_pickle=False) as data:
            return sum(any(rows) for rows in steps_in_phases(ends, data["executed"]))
    except UNREADABLE:
        return len(ends)


def _rounds(folder: Path) -> tuple[RoundProgress, ...]:
    found: dict[str, list[dict[str, float]]] = {}
    for name, figures in _figures(folder, "verify_*.npz"):
        match = ROUND.fullmatch(name)
        if match is not None:
            found.setdefault(match[1], []).append(figures)
    rounds = []
    for digest, runs in found.items():
        psnr, ssim, density = (float(np.mean([run[key] for run in runs])) for key in ("psnr", "ssim", "density"))
        known = None if np.isnan(ssim) else ssim
        rounds.append(RoundProgress(digest=digest, psnr=psnr, ssim=known, density=density, runs=len(runs)))
    return tuple(rounds)


def _figures(folder: Path, pattern: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and figures of finished comparisons, oldest first; files that cannot be read are left out."""
    for path in sorted(folder.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        try:
            with np.load(path, allow_pickle=False) as data:
                yield path.name, {key: float(data[key]) for key in ("psnr", "ssim", "density")}
        except UNREADABLE:
            continue
