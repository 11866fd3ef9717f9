"""Running the official package over a run's clips, one dimension at a time, and keeping its untouched results."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit.validation import check_choice
from fastdit.whole_files import write_json
from fastdit_eval.vbench.coverage import (
    Coverage,
    check_filtered,
    check_folder,
    check_whole,
    coverage_of,
    edition,
    unreadable_clips,
)
from fastdit_eval.vbench.dimensions import DIMENSIONS, FLICKER, KNOWN_SHA256
from fastdit_eval.vbench.files import RunFolder, VBenchError, read_json, sha256_of
from fastdit_eval.vbench.foreign import call_worker, examine
from fastdit_eval.vbench.manifest import Manifest, read_suite
from fastdit_eval.vbench.naming import STANDARD_SAMPLES
from fastdit_eval.vbench.results import read_result_file

META_SCHEMA = "vbench_meta/1"
MODES = ("vbench_standard", "custom_input")


@dataclass(frozen=True, kw_only=True)
class OfficialRun:
    """How the official package is to run.

    Args:
        python: Interpreter of the environment that has it.
        dimensions: What to measure; default all that the plan has and the package knows.
        mode: `"vbench_standard"`, for scores, or `"custom_input"`, which takes any clips.
        device: `"cpu"` or `"cuda"`.
        cache: Folder of weights; default the package's own.
        filtered_videos: Folder that VBench's static filter wrote, for `temporal_flickering`.
        random_weights: The cache holds random weights, to try the way; such results are never scored.
        allow_partial: Measure an incomplete set; such results are never scored.
    """

    python: Path
    dimensions: tuple[str, ...] = ()
    mode: str = "vbench_standard"
    device: str = "cpu"
    cache: Path | None = None
    filtered_videos: Path | None = None
    random_weights: bool = False
    allow_partial: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        for name in self.dimensions:
            check_choice("dimension", name, tuple(DIMENSIONS))


def run_official(run: RunFolder, manifest: Manifest, how: OfficialRun) -> dict[str, Any]:
    """Measure the dimensions that have no result yet.

    Args:
        run: The run's folder.
        manifest: Its plan.
        how: What to measure, and with what.

    Returns:
        The meta data of all results so far.

    Raises:
        VBenchError: Clips are missing, unplanned or unreadable, weights are missing, or a score is NaN.
    """
    if manifest.benchmark != "vbench":
        raise ConfigError(
            f"benchmark {manifest.benchmark!r}: the package vbench cannot run it; run the official checkout in its "
            "own environment and give its results to 'fastdit eval vbench score --results'"
        )
    dimensions = how.dimensions or tuple(name for name in DIMENSIONS if name in manifest.dimensions)
    if how.mode == "vbench_standard" and (unknown := sorted(set(dimensions) - set(manifest.dimensions))):
        raise ConfigError(f"dimensions {unknown}: the plan has none of them; use mode custom_input, or plan them")
    if not dimensions:
        raise ConfigError("the plan has none of VBench's dimensions: name some, with mode custom_input")
    check_folder(run.videos, manifest)
    bad, seconds = unreadable_clips(run, manifest, [clip.file for clip in manifest.clips])
    abilities = examine(how.python, how.cache)["dimensions"]
    meta = load_meta(run)
    meta["leaderboard_edition"] = edition(seconds)
    for name in dimensions:
        if _has_result(run, meta, name):
            continue
        if not abilities[name]["ready"]:
            raise VBenchError(f"{name} cannot run offline here; missing: {', '.join(abilities[name]['needs'])}")
        meta["dimensions"][name] = _measure(run, manifest, how, name, bad)
        write_json(run.meta, meta)
    return meta


def load_meta(run: RunFolder) -> dict[str, Any]:
    """Meta data of the official results, empty before the first."""
    if not run.meta.exists():
        return {"schema": META_SCHEMA, "leaderboard_edition": None, "dimensions": {}}
    meta: dict[str, Any] = read_json(run.meta, "meta data")
    if not isinstance(meta, dict) or meta.get("schema") != META_SCHEMA:
        raise VBenchError(f"{run.meta} is not of schema {META_SCHEMA!r}")
    return meta


def result_path(run: RunFolder, dimension: str) -> Path:
    """The official result file of a dimension."""
    return run.results / f"{dimension}_eval_results.json"


def _has_result(run: RunFolder, meta: dict[str, Any], dimension: str) -> bool:
    entry, path = meta["dimensions"].get(dimension), result_path(run, dimension)
    if entry is None or not path.exists():
        return False
    return bool(sha256_of(path) == entry["result_sha256"])


def _measure(
    run: RunFolder, manifest: Manifest, how: OfficialRun, dimension: str, bad: Sequence[str]
) -> dict[str, Any]:
    """Run the package on one dimension; its files move to the results once they are read and sound."""
    coverage = _coverage(run, manifest, how, dimension, bad)
    videos, filtered = run.videos, None
    if dimension == FLICKER and how.filtered_videos is not None:
        videos, filtered = how.filtered_videos, check_filtered(run, manifest, how.filtered_videos, dimension)
    elif not how.allow_partial:
        check_whole(coverage, dimension)
    staging = run.root / "vbench" / "staging" / dimension
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    request = {
        "action": "run",
        "videos": str(videos.absolute()),
        "suite": str(run.suite.absolute()),
        "output": str(staging.absolute()),
        "name": dimension,
        "dimension": dimension,
        "mode": how.mode,
        "device": how.device,
        "networks": list(DIMENSIONS[dimension].networks),
    }
    answer = call_worker(how.python, request, how.cache, run.root / "vbench" / "logs" / f"{dimension}.txt")
    made = staging / f"{dimension}_eval_results.json"
    read_result_file(made)
    run.results.mkdir(parents=True, exist_ok=True)
    details = run.root / "vbench" / "full_info"
    details.mkdir(parents=True, exist_ok=True)
    (staging / f"{dimension}_full_info.json").replace(details / f"{dimension}_full_info.json")
    made.replace(result_path(run, dimension))
    shutil.rmtree(staging)
    return {
        **answer,
        "mode": how.mode,
        "device": how.device,
        "coverage": coverage.as_row(),
        "static_filter": filtered,
        "weights": _weights(dimension, answer["weights_sha256"], how.random_weights),
        "result_sha256": sha256_of(result_path(run, dimension)),
    }


def _coverage(run: RunFolder, manifest: Manifest, how: OfficialRun, dimension: str, bad: Sequence[str]) -> Coverage:
    """Clips the package will look for: by the suite's prompts in standard mode, else all of the folder."""
    if how.mode == "custom_input":
        return Coverage(num_prompts=len(manifest.prompts), num_expected=len(manifest.clips), missing=tuple(bad))
    asked = {entry["prompt_en"] for entry in read_suite(run.suite) if dimension in entry["dimension"]}
    planned = coverage_of(manifest, dimension, bad)
    names = {f"{prompt}-{index}.mp4" for prompt in asked for index in range(STANDARD_SAMPLES)}
    unplanned = names - set(manifest.expected(dimension))
    return Coverage(
        num_prompts=len(asked), num_expected=len(names), missing=tuple(sorted({*planned.missing, *unplanned}))
    )


def _weights(dimension: str, hashes: dict[str, str], random_weights: bool) -> str:
    """`"none"`, `"random"`, `"wrong"` (a known hash differs) or `"official"` (as far as hashes are known)."""
    if not DIMENSIONS[dimension].networks:
        return "none"
    if random_weights:
        return "random"
    wrong = [name for name, digest in hashes.items() if not digest.startswith(KNOWN_SHA256.get(name, ""))]
    return "wrong" if wrong else "official"
