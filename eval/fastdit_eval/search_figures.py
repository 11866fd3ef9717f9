"""What a search keeps and saves: held-out quality of plans, and their attention beside the best uniform setting.

All runs are kept in one folder and shared by all promises: dense runs, measurements, gains, and the cells of the grid.
A stopped measurement goes on with the next run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastdit.config import AttentionConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.plan import Plan
from fastdit.plan_reading import sha256
from fastdit.search.find_plan import Search
from fastdit.search.identity import describe_pipeline
from fastdit.search.ladder import Mode, default_ladder
from fastdit.search.promise import NINE_OF_TEN, TAIL_ALLOWANCE
from fastdit.search.results import Arrays, ResultFolder
from fastdit.search.runs import SearchRuns
from fastdit.search.settings import DEFAULT_PHASES, SearchSettings
from fastdit_eval.uniform_setting import Evaluate, search_grid, settle, uniform_families

SCHEMA = "search-figures/1"
# Seeds of held-out prompts begin here, so that no noise is shared with calibration.
HELD_OUT_SEED = 10_000
# Of the grid of uniform settings so many at most are run on all held-out prompts, those within this factor of the best.
FINALISTS = 3
FINALISTS_WITHIN = 1.25
REQUIRED_SAVING = 0.25
REQUIRED_COST = 2.0


@dataclass(frozen=True, kw_only=True)
class FigureSettings:
    """What is measured.

    Args:
        calibration: Prompts of the searches.
        held_out: Prompts that no search has seen.
        promises: `min_psnr` of each search, in dB.
        call: Arguments of the pipeline's call but prompt and seed.
        tiles: Rows of query tiles and of key tiles, for plans and uniform settings alike.
        densities: Of the uniform settings, rising.
        windows: Reach of the static pattern in frames, rising.
        dense_steps: Shares of dense steps of the uniform settings, rising.
        num_tuning: Held-out prompts that the grid is searched on.
        phases: Ends of the phases of the plans.
        seed: Of the first calibration prompt.
    """

    calibration: Sequence[str]
    held_out: Sequence[str]
    promises: Sequence[float] = (26.0, 30.0, 34.0)
    call: Mapping[str, Any] = field(default_factory=dict)
    tiles: tuple[int, int] = (128, 64)
    densities: Sequence[float] = (0.03, 0.06, 0.12, 0.2, 0.3, 0.45, 0.65)
    windows: Sequence[int] = (1, 2, 4, 8)
    dense_steps: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
    num_tuning: int = 4
    phases: Sequence[float] = DEFAULT_PHASES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.held_out or not self.promises:
            raise ConfigError("held_out and promises: accepted is at least one of each")
        for name in ("densities", "windows", "dense_steps"):
            values = list(getattr(self, name))
            if not values or values != sorted(set(values)):
                raise ConfigError(f"{name}={values}: accepted are rising values, at least one")
        if set(self.held_out) & set(self.calibration):
            raise ConfigError("held_out has prompts of the calibration: accepted are others")

    @property
    def ladder(self) -> dict[str, Mode]:
        """Modes of the searches."""
        return default_ladder(*self.tiles)

    @property
    def held_out_runs(self) -> list[tuple[str, int]]:
        """Prompts and seeds."""
        return [(prompt, HELD_OUT_SEED + number) for number, prompt in enumerate(self.held_out)]

    def search(self, promise: float) -> SearchSettings:
        """The search for one promise; all of them share a folder."""
        return SearchSettings(
            prompts=tuple(self.calibration),
            min_psnr=promise,
            call=dict(self.call),
            phases=tuple(self.phases),
            ladder=self.ladder,
            seed=self.seed,
        )


def measure_search(
    pipe: Any, settings: FigureSettings, folder: Path, *, with_uniform: bool = True, progress: bool = True
) -> dict[str, Any]:
    """Search for every promise, run the plans on held-out prompts, and find the uniform settings of the same PSNR.

    Args:
        pipe: A pipeline that is not enabled.
        settings: What is measured.
        folder: Runs are kept here, and the plans as `plan_<promise>.json`.
        with_uniform: Whether to search the grid of uniform settings.
        progress: Show progress.

    Returns:
        Plain data: `promises`, a list with `held_out`, `uniform`, `saving`, `search` and `meets`, and what was run.
    """
    first = settings.search(settings.promises[0])
    results = ResultFolder(folder / "runs", {**first.to_dict(), "pipeline": describe_pipeline(pipe)})
    rows = []
    with tqdm(desc="figures", unit="run", disable=not progress, total=expected_runs(settings, with_uniform)) as bar:
        for promise in settings.promises:
            figures = _Figures(pipe, settings, results, bar)
            row = figures.of_promise(promise, folder)
            if with_uniform:
                row |= figures.uniform(row)
            row["meets"] = verdicts(row)
            rows.append(row)
    call = {**settings.call}
    return {
        "schema": SCHEMA,
        "settings": {**dataclasses.asdict(settings), "call": call, "tiles": list(settings.tiles)},
        "promises": rows,
        "environment": describe_environment(),
    }


def expected_runs(settings: FigureSettings, with_uniform: bool = True) -> int:
    """Runs of a pipeline, about: what a search and a grid take as a rule."""
    promises, held_out = len(settings.promises), len(settings.held_out)
    calibration = len(settings.calibration)
    # Dense runs, floor and the first phase; then plans tried and verified, and run on what is held out.
    shared = calibration + held_out + 1 + 1
    own = calibration + held_out
    cells = 3 * (len(settings.dense_steps) + 1) * settings.num_tuning
    grid = cells + promises * (cells // 3 + 2 * FINALISTS * held_out)
    return shared + promises * own + (grid if with_uniform else 0)


def verdicts(row: Mapping[str, Any]) -> dict[str, bool]:
    """What the figures of one promise meet."""
    held_out = row["held_out"]
    found = {
        "mean": held_out["psnr"] >= row["promise"],
        "tail": held_out["share_above"] >= NINE_OF_TEN,
        "cost": row["search"]["dense_runs_per_prompt"] < REQUIRED_COST,
    }
    if "saving" in row:
        found["saving"] = row["saving"] >= REQUIRED_SAVING
    return found


class _Figures:
    """Figures of one promise at a time, from runs shared by all."""

    def __init__(self, pipe: Any, settings: FigureSettings, results: ResultFolder, bar: tqdm[Any]) -> None:
        self.pipe, self.settings, self.results, self.bar = pipe, settings, results, bar
        self.runs = SearchRuns(pipe, settings.search(settings.promises[0]), results, bar)

    def of_promise(self, promise: float, folder: Path) -> dict[str, Any]:
        """Search, and run the plan on what is held out."""
        search = self.settings.search(promise)
        runs = SearchRuns(self.pipe, search, self.results, self.bar)
        self.results.used.clear()
        before, start = self.results.computed, time.process_time()
        plan = Search(search, runs).run()
        planning = time.process_time() - start - (self.results.computed - before)
        cost = self._cost(search, planning)
        plan.save(folder / f"plan_{promise:g}.json")
        found = self._held_out(_name(plan), plan)
        return {
            "promise": promise,
            "keeps_promise": plan.keeps_promise,
            "calibration": plan.measured,
            "predicted_cost": plan.predicted_cost,
            "held_out": summarize(found, promise),
            "search": cost,
        }

    def uniform(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The best uniform setting at the mean PSNR of the plan on the held-out prompts.

        The grid is searched by medians: one prompt in a few that takes another course would choose for all.
        """
        settings, held_out = self.settings, row["held_out"]
        families = uniform_families(*settings.tiles, settings.densities, settings.windows)
        tuning = settings.held_out_runs[: settings.num_tuning]
        # The same prompts on both sides, so that it does not matter how hard they are.
        target = float(np.median(held_out["psnr_of_prompts"][: len(tuning)]))
        shares = list(settings.dense_steps)
        grid = search_grid(families, shares[::2], shares, target, self._evaluator(tuning, np.median))
        if not grid:
            return {"uniform": None}
        on_all = self._evaluator(settings.held_out_runs, np.mean)
        near = [one for one in grid[:FINALISTS] if one.density <= grid[0].density * FINALISTS_WITHIN]
        finalists = [settle(one, held_out["psnr"], on_all) for one in near]
        best = min(finalists, key=lambda one: float(one["density"]))
        saving = 1 - held_out["density"] / best["density"]
        return {"uniform": {**best, "finalists": finalists, "grid": [one.to_dict() for one in grid]}, "saving": saving}

    def _evaluator(self, prompts: list[tuple[str, int]], middle: Callable[[Any], Any]) -> Evaluate:
        def evaluate(config: AttentionConfig) -> tuple[float, float]:
            found = self.runs.compare(_name(config), config, prompts)
            return float(middle(found["psnr"])), float(found["density"].mean())

        return evaluate

    def _held_out(self, name: str, plan: Plan) -> Arrays:
        return self.runs.compare(name, plan, self.settings.held_out_runs)

    def _cost(self, search: SearchSettings, planning: float) -> dict[str, Any]:
        """What the search would have taken alone, in dense runs: those of this machine, by processor time.

        Args:
            search: Whose.
            planning: Processor seconds besides runs.
        """
        dense = [f"dense_{seed}" for _, seed in (*search.verified_runs, *search.measured_runs[:1])]
        shared = [*dense, "steps", "calls", f"noise_floor_{search.verified_runs[0][1]}"]
        shared += [f"measured_{number}" for number in range(len(search.measured_runs))]
        shared += [f"phase_{phase}_{search.seed}" for phase in range(len(search.phases))]
        own = [name for name in self.results.used if name.startswith("verify_")]
        seconds = {name: self.results.seconds(name) for name in (*shared, *own)}
        one = float(np.median([seconds[f"dense_{seed}"][1] for _, seed in search.verified_runs]))
        groups = {
            "dense": [*dense[:-1], "steps"],
            "measured": [name for name in shared if name.startswith("measured_")] + [dense[-1], "calls"],
            "phases": [name for name in shared if name.startswith("phase_")],
            "floor": [name for name in shared if name.startswith("noise_floor_")],
            "tried and verified": own,
        }
        parts = {label: sum(seconds[name][1] for name in names) / one for label, names in groups.items()}
        parts["planning"] = planning / one
        total = sum(parts.values())
        return {
            "dense_run_seconds": one,
            "dense_runs": total,
            "dense_runs_per_prompt": total / len(search.prompts),
            "parts_in_dense_runs": parts,
            "sparse_runs": len(own),
            "clock": "processor seconds of this process",
        }


def summarize(found: Arrays, promise: float) -> dict[str, Any]:
    """Held-out figures of a plan."""
    psnr = found["psnr"]
    return {
        "prompts": len(psnr),
        "psnr": float(psnr.mean()),
        "worst_psnr": float(psnr.min()),
        "psnr_deviation": float(psnr.std(ddof=1)) if len(psnr) > 1 else 0.0,
        "share_above": float((psnr >= promise - TAIL_ALLOWANCE).mean()),
        "density": float(found["density"].mean()),
        "psnr_of_prompts": psnr.tolist(),
    }


def _name(config: AttentionConfig | Plan) -> str:
    """Names of runs come from what was run, so that equal settings are run once."""
    digest = config.digest() if isinstance(config, Plan) else sha256(config.to_dict())
    return f"{'held' if isinstance(config, Plan) else 'uniform'}_{digest[:20]}"
