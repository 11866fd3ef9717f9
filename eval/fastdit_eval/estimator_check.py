"""Does the search's estimate tell which heads matter? Predicted errors against those of real runs, head by head.

Every sampled head alone is sparse in one phase of a run, all else is dense: what that does to the frames is held
against what each estimate says of it. Rank correlations are Spearman's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm

from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.plan_reading import sha256
from fastdit.search.find_plan import Search
from fastdit.search.identity import describe_pipeline
from fastdit.search.results import Arrays, ResultFolder
from fastdit.search.runs import SearchRuns
from fastdit.search.settings import SearchSettings
from fastdit.search.tables import SearchTables

SCHEMA = "estimator/1"
FloatArray = NDArray[np.float64]


def check_estimator(
    pipe: Any, settings: SearchSettings, *, modes: Sequence[str], num_items: int, num_plans: int, folder: Path | None
) -> dict[str, Any]:
    """Run sampled heads sparse one at a time, and random plans, and compare with the estimates.

    Args:
        pipe: A pipeline that is not enabled; of one transformer.
        settings: A search; the first of its prompts is run.
        modes: Modes that heads take.
        num_items: Heads (in a phase, in a mode) that are sampled.
        num_plans: Plans in which every head has a random one of the modes or is dense.
        folder: Finished runs are kept here.

    Returns:
        Plain data: rank correlation of each estimate over all items and within phases, and for whole plans the factor
        between true and predicted error.

    Raises:
        ConfigError: The ladder lacks a mode, or the pipeline has several transformers.
    """
    names = list(settings.modes)
    unknown = [name for name in modes if name not in names]
    if unknown:
        raise ConfigError(f"modes has {unknown[0]!r}: the ladder has {', '.join(names)}")
    results = ResultFolder(folder, {**settings.to_dict(), "pipeline": describe_pipeline(pipe)})
    with tqdm(desc="estimator", unit="run", total=num_items + num_plans + len(settings.phases) + 1) as bar:
        runs = SearchRuns(pipe, settings, results, bar)
        search = Search(settings, runs)
        tables = search.measure()
        if len(tables.shape) > 1:
            raise ConfigError("the pipeline has several transformers: accepted is one")
        checked = _Checked(search, runs, tables)
        rng = np.random.default_rng(settings.seed)
        items = checked.sample_items([names.index(name) for name in modes], num_items, rng)
        single = [checked.item(item, mode) for item, mode in items]
        columns = [0, *(names.index(name) for name in modes)]
        plans = [checked.plan(rng.choice(columns, len(tables.error))) for _ in range(num_plans)]
    return {
        "schema": SCHEMA,
        "prompt": settings.prompts[0],
        "call": dict(settings.call),
        "phases": list(settings.phases),
        "rank_correlation": correlations(single),
        "factor": factors(single),
        "plans": {"runs": plans, "factor": factors(plans), "rank_correlation": correlations(plans)},
        "items": single,
        "gains": [[None if np.isnan(gain) else gain for gain in row] for row in checked.gains.tolist()],
        "environment": describe_environment(),
    }


class _Checked:
    """Runs and the estimates of them."""

    def __init__(self, search: Search, runs: SearchRuns, tables: SearchTables) -> None:
        self.search, self.runs, self.tables = search, runs, tables
        self.layers, self.heads = tables.shape[0]
        arrays: Arrays = runs.measure(0)
        per_item = (-1, tables.error.shape[1])
        by_frames = "frame_gain_0" in arrays
        # Of heads and modes, or of whole layers.
        gain = arrays["frame_gain_0"] if by_frames else np.tile(arrays["gain_0"][..., None, None], (self.heads, 1))
        self.gains: FloatArray = gain.mean((2, 3))
        whose = "the frames" if by_frames else "layers"
        projected = arrays["error_0"].reshape(per_item)
        self.estimates: dict[str, FloatArray] = {
            "relative error of the head": arrays["relative_0"].reshape(per_item),
            "behind the projection": projected,
            f"with gains of {whose}": projected * gain.reshape(len(projected), -1),
            f"with gains of {whose}, modes and phases": tables.error,
        }

    def sample_items(self, modes: list[int], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Places in the tables, and a mode of each; every phase and mode about equally often."""
        known = [
            (item, mode)
            for item in range(len(self.tables.error))
            for mode in modes
            if self.tables.error[item, mode] > 0
        ]
        order = rng.permutation(len(known))[:count]
        return [known[number] for number in sorted(order.tolist())]

    def item(self, item: int, mode: int) -> dict[str, Any]:
        """One head in one phase."""
        choice = np.zeros(len(self.tables.error), np.int64)
        choice[item] = mode
        phase, rest = divmod(item, self.layers * self.heads)
        layer, head = divmod(rest, self.heads)
        start = self.runs.steps_of_phases()[phase].start
        return {
            "phase": phase,
            "layer": layer,
            "head": head,
            "mode": list(self.search.settings.modes)[mode],
            **self._run(f"item_{item}_{mode}", choice, start),
        }

    def plan(self, choice: NDArray[np.int64]) -> dict[str, Any]:
        """A whole plan; what was not measured, in phases without steps, is dense."""
        known = np.isfinite(self.tables.error[np.arange(len(choice)), choice])
        choice = np.where(known, choice, 0)
        return self._run(f"plan_{sha256({'choice': choice.tolist()})[:20]}", choice, 0)

    def _run(self, name: str, choice: NDArray[np.int64], replay_before: int) -> dict[str, Any]:
        plan = self.search.plan_of(self.tables, choice)
        found = self.runs.compare(name, plan, self.search.settings.measured_runs[:1], replay_before)
        places = np.arange(len(choice)), choice
        predicted = {label: float(np.nansum(table[places])) for label, table in self.estimates.items()}
        return {"mse": float(found["mse"][0]), "psnr": float(found["psnr"][0]), "predicted": predicted}


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Spearman's rank correlation of each estimate with the true error: of all rows, and the mean within phases.

    `None` where there are too few rows, or all are equal.
    """
    if len(rows) < 3:
        return {}
    true = np.array([row["mse"] for row in rows])
    phases = np.array([row.get("phase", 0) for row in rows])
    found: dict[str, dict[str, float | None]] = {}
    for label in rows[0]["predicted"]:
        said = np.array([row["predicted"][label] for row in rows])
        within = [_rank(said[phases == one], true[phases == one]) for one in np.unique(phases)]
        known = [value for value in within if value is not None]
        found[label] = {"all": _rank(said, true), "within_phases": float(np.mean(known)) if known else None}
    return found


def factors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """True over predicted error of the last estimate: median, and the width that holds the middle 80 %, in dB."""
    if not rows:
        return {}
    label = list(rows[0]["predicted"])[-1]
    ratio = np.array([max(row["mse"], 1e-20) / max(row["predicted"][label], 1e-20) for row in rows])
    low, middle, high = np.quantile(10 * np.log10(ratio), [0.1, 0.5, 0.9]).tolist()
    return {"median_db": middle, "spread_db": high - low}


def _rank(said: FloatArray, true: FloatArray) -> float | None:
    if len(said) < 3 or np.ptp(said) == 0 or np.ptp(true) == 0:
        return None
    return float(spearmanr(said, true).statistic)
