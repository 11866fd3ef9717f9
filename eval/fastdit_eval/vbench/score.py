"""Total scores from official results, by the published normalisation and weights; refused where they would mislead."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit_eval.vbench.dimensions import (
    DIMENSIONS,
    FLICKER,
    GROUPS_2,
    MEAN5,
    QUALITY_WEIGHT,
    SEMANTIC_WEIGHT,
)
from fastdit_eval.vbench.files import RunFolder, VBenchError, sha256_of
from fastdit_eval.vbench.manifest import Manifest
from fastdit_eval.vbench.naming import LONG_RULE
from fastdit_eval.vbench.official import load_meta
from fastdit_eval.vbench.results import Result, read_results

SCHEMA = "vbench_score/1"


def normalise(dimension: str, score: float) -> float:
    """`(score - low) / (high - low)` with the published bounds of the dimension."""
    bounds = DIMENSIONS[dimension]
    return (score - bounds.low) / (bounds.high - bounds.low)


def group_score(scores: Mapping[str, float], group: str) -> float:
    """Weighted mean of the normalised scores of one group: sum(w n) / sum(w).

    Args:
        scores: Raw scores of all dimensions of the group.
        group: `"quality"` or `"semantic"`.

    Raises:
        VBenchError: A dimension of the group is missing; the official script would put 0, which counts below 0.
    """
    names = [name for name, item in DIMENSIONS.items() if item.group == group]
    missing = [name for name in names if name not in scores]
    if missing:
        raise VBenchError(f"the {group} score needs all of its {len(names)} dimensions; missing: {', '.join(missing)}")
    total = sum(DIMENSIONS[name].weight * normalise(name, scores[name]) for name in names)
    return total / sum(DIMENSIONS[name].weight for name in names)


def totals(scores: Mapping[str, float]) -> dict[str, float]:
    """`{"quality", "semantic", "total"}` of VBench, with total = (4 quality + semantic) / 5.

    Args:
        scores: Raw scores of all 16 dimensions.

    Raises:
        VBenchError: A dimension is missing, or a score is not finite.
    """
    for name, score in scores.items():
        if not math.isfinite(score):
            raise VBenchError(f"{name} is {score}: no total with it")
    quality, semantic = group_score(scores, "quality"), group_score(scores, "semantic")
    total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return {"quality": quality, "semantic": semantic, "total": total}


def totals_2(scores: Mapping[str, float]) -> dict[str, float]:
    """Group scores of VBench-2.0 and `total`, their mean.

    Args:
        scores: Raw scores of all 18 dimensions.

    Raises:
        VBenchError: A dimension is missing.
    """
    missing = [name for names in GROUPS_2.values() for name in names if name not in scores]
    if missing:
        raise VBenchError(f"VBench-2.0 needs all 18 dimensions; missing: {', '.join(missing)}")
    groups = {group: sum(scores[name] for name in names) / len(names) for group, names in GROUPS_2.items()}
    return {**groups, "total": sum(groups.values()) / len(groups)}


def score_run(run: RunFolder, manifest: Manifest, *, partial: bool = False) -> dict[str, Any]:
    """Scores of a run whose results the driver made.

    Args:
        run: The run's folder.
        manifest: Its plan.
        partial: Report the dimensions that are there, without a total.

    Returns:
        `{"dimensions": {name: {"raw", "normalised"}}, "quality", "semantic", "total", "vbench_mean5_raw", "notes"}`.

    Raises:
        VBenchError: A result is stray, changed, NaN, of random weights, of an incomplete set, or of other clips;
            or without `partial`, dimensions are missing, were not measured in standard mode, or flickering was
            measured on clips that did not pass the static filter.
    """
    if manifest.benchmark != "vbench":
        raise ConfigError(f"benchmark {manifest.benchmark!r}: give its official results with --results")
    results, meta = read_results(run.results, DIMENSIONS), load_meta(run)
    for name, result in results.items():
        _check_entry(name, result, meta["dimensions"].get(name))
        if not partial:
            _check_standard(name, meta["dimensions"][name])
        _check_names(name, result, meta["dimensions"][name], manifest)
    scores = {name: result.score for name, result in results.items()}
    report = {"schema": SCHEMA, "benchmark": manifest.benchmark, **_report(scores, partial)}
    report["notes"] = _notes(scores, meta)
    report["leaderboard_edition"] = meta["leaderboard_edition"]
    return report


def score_results(folder: Path, benchmark: str, *, partial: bool = False) -> dict[str, Any]:
    """Scores of official results made elsewhere with VBench-2.0 or VBench-Long; which clips they saw is not checked.

    Args:
        folder: Official result files and nothing else.
        benchmark: `"vbench-2.0"` or `"vbench-long"`.
        partial: Report the dimensions that are there, without a total.
    """
    head: dict[str, Any] = {"schema": SCHEMA, "benchmark": benchmark}
    note = "which clips the scores were measured on is not checked"
    if benchmark == "vbench-long":
        found = read_results(folder, DIMENSIONS)
        scores = {name: result.score for name, result in found.items()}
        if not partial:
            totals(scores)
        return {**head, **_report(scores, partial), "notes": [note]}
    if benchmark != "vbench-2.0":
        raise ConfigError("results of VBench: measure them with 'fastdit eval vbench run', which keeps what they need")
    known = [name for names in GROUPS_2.values() for name in names]
    scores = {name: result.score for name, result in read_results(folder, known).items()}
    rows = {name: {"raw": score} for name, score in scores.items()}
    return {**head, "dimensions": rows, **({"total": None} if partial else totals_2(scores)), "notes": [note]}


def _report(scores: Mapping[str, float], partial: bool) -> dict[str, Any]:
    rows = {name: {"raw": score, "normalised": normalise(name, score)} for name, score in scores.items()}
    groups: dict[str, Any] = {"quality": None, "semantic": None, "total": None} if partial else dict(totals(scores))
    mean5 = sum(scores[name] for name in MEAN5) / len(MEAN5) if set(MEAN5) <= scores.keys() else None
    return {"dimensions": rows, **groups, "vbench_mean5_raw": mean5}


def _check_entry(name: str, result: Result, entry: dict[str, Any] | None) -> None:
    if entry is None:
        raise VBenchError(f"{result.path} was not made by this run: move it away")
    if sha256_of(result.path) != entry["result_sha256"]:
        raise VBenchError(f"{result.path} was changed after it was made: run the dimension again")
    if entry["weights"] not in ("official", "none"):
        raise VBenchError(f"{name} was measured with {entry['weights']} weights: its score means nothing")
    _, expected, found = entry["coverage"]
    if found != expected and entry["static_filter"] is None:
        raise VBenchError(f"{name} was measured on {found} of {expected} clips: a partial set has no score")


def _check_names(name: str, result: Result, entry: dict[str, Any], manifest: Manifest) -> None:
    """The clips of the result are the planned ones, each once."""
    if result.videos is None:
        raise VBenchError(f"{result.path} does not list its clips: {name} cannot be checked")
    standard = entry["mode"] == "vbench_standard"
    expected = set(manifest.expected(name)) if standard else {clip.file for clip in manifest.clips}
    twice = [file for file, count in Counter(result.videos).items() if count > 1]
    other = sorted(set(result.videos) - expected)
    if other and name == FLICKER and standard:
        raise VBenchError(
            f"{name} was measured on {other[0]!r}: an unfiltered set of 25 samples, or clips of another plan; "
            "VBench wants the 5 that its static filter leaves"
        )
    if twice or other:
        raise VBenchError(f"{name} was measured on clips that are not planned, or twice: {(twice + other)[:3]}")
    wanted = len(expected) if entry["static_filter"] is None else entry["static_filter"]["num_clips"]
    if len(result.videos) != wanted:
        raise VBenchError(f"{name} was measured on {len(result.videos)} of {wanted} clips: a partial set has no score")


def _check_standard(name: str, entry: dict[str, Any]) -> None:
    if entry["mode"] != "vbench_standard":
        raise VBenchError(f"{name} was measured in mode {entry['mode']}: a total needs vbench_standard; see --partial")
    if name == FLICKER and entry["static_filter"] is None:
        raise VBenchError(
            f"{name} was measured on clips that did not pass VBench's static filter: run the filter over the 25 "
            "samples a prompt and measure with --filtered-videos; see --partial"
        )


def _notes(scores: Mapping[str, float], meta: dict[str, Any]) -> list[str]:
    notes = []
    if meta["leaderboard_edition"] == "vbench-long":
        notes.append(f"the clips last 5.0 s or more: not comparable to VBench's leaderboard ({LONG_RULE})")
    if FLICKER in scores:
        filtered = meta["dimensions"][FLICKER]["static_filter"]
        if filtered is None:
            notes.append("temporal_flickering: clips did not pass the static filter; frozen videos score higher")
        elif filtered["short"]:
            notes.append(f"temporal_flickering: {len(filtered['short'])} prompts have fewer than 5 static clips")
        if "dynamic_degree" not in scores:
            notes.append("temporal_flickering without dynamic_degree: loss of motion raises it")
    return notes
