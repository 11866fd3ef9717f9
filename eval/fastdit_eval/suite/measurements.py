"""The rows of a suite measured against dense: fidelity, offline quality, speed, density, and the judge's shares."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastdit.whole_files import write_json
from fastdit_eval.fidelity_run import draw_worst, measure_run
from fastdit_eval.quality_run import measure_quality
from fastdit_eval.result_files import read_result, result_path
from fastdit_eval.suite.clip_store import DENSE, ClipStore

SPEED_SCHEMA = "suite_speed/1"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured, and what stands beside it in every result.

    Args:
        clips: Names of the clips.
        fps: Frames per second.
        convention: Of the fidelity metrics.
        metrics: Their names; `None` for all of the convention.
        floor: Row of the dense run with another dense backend, if there is one.
        context: `environment` and `command`.
    """

    clips: tuple[str, ...]
    fps: float
    convention: str
    metrics: tuple[str, ...] | None
    floor: str | None
    context: dict[str, Any]


def measure_row(store: ClipStore, row: str, how: Measurement, progress: Progress) -> None:
    """Write the results of one row: `results/fidelity-<row>.json`, `quality-`, `speed-`.

    Args:
        store: The suite, with all clips of the row and of dense.
        row: A method, or the other dense backend.
        how: What to measure.
        progress: Told pairs done, pairs in all and the name.
    """
    folders = store.frames(DENSE), store.frames(row)
    target = result_path(store.root, "fidelity", row)
    report = measure_run(
        *folders, convention=how.convention, metrics=how.metrics, store=target, names=how.clips, progress=progress
    )
    floor = None if how.floor in (None, row) else read_result(result_path(store.root, "fidelity", str(how.floor)))
    if floor is not None:
        report["noise_floor"] = {"run": how.floor, **{key: floor[key] for key in ("metrics", "unavailable")}}
    write_json(target, report | how.context)
    draw_worst(report, target.with_suffix(".png"))
    quality = measure_quality(*folders, how.fps, how.clips)
    write_json(result_path(store.root, "quality", row), quality | how.context)
    write_json(result_path(store.root, "speed", row), row_speed(store, row, how.clips) | how.context)


def row_speed(store: ClipStore, row: str, clips: Sequence[str]) -> dict[str, Any]:
    """Density and time of a row.

    A ratio is counted only where one process made both clips; `num_timed` says how often. `density` is the mean over
    the clips, each over its whole run.
    """
    records, dense = store.records(row, clips), store.records(DENSE, clips)
    timed = [clip for clip in clips if records[clip]["process"] == dense[clip]["process"]]
    ratios = [dense[clip]["seconds"] / records[clip]["seconds"] for clip in timed]
    densities = [record["density"] for record in records.values()]
    return {
        "schema": SPEED_SCHEMA,
        "method": row,
        "speedup": statistics.median(ratios) if ratios else None,
        "speedup_of_each_pair": ratios,
        "num_timed": len(timed),
        "num_processes": max(record["num_processes"] for record in records.values()),
        "seconds": {
            "dense": statistics.median(record["seconds"] for record in dense.values()),
            "sparse": statistics.median(record["seconds"] for record in records.values()),
        },
        "density": statistics.fmean(densities),
        "density_of_each": densities,
        "density_cells": _mean_cells([record["density_cells"] for record in records.values()]),
    }


def _mean_cells(runs: Sequence[list[list[list[float]]]]) -> list[list[list[float]]]:
    """Mean over the clips of `[layer, step, density]`, for each transformer."""
    means = []
    for cells in zip(*runs, strict=True):
        values: dict[tuple[float, float], list[float]] = {}
        for run in cells:
            for layer, step, density in run:
                values.setdefault((layer, step), []).append(density)
        means.append([[*place, statistics.fmean(found)] for place, found in sorted(values.items())])
    return means


def row_summary(store: ClipStore, row: str, num_clips: int) -> dict[str, Any]:
    """One row of `suite.json` from its results; dense has the judge's shares alone."""
    judged = read_result(result_path(store.root, "judge", row))
    assert judged is not None, "written before"
    summary: dict[str, Any] = {"judge": judged["shares"], "num_clips": num_clips}
    if row == DENSE:
        return summary
    fidelity, quality, speed = (
        read_result(result_path(store.root, kind, row)) for kind in ("fidelity", "quality", "speed")
    )
    assert fidelity is not None, "written before"
    assert quality is not None, "written before"
    assert speed is not None, "written before"
    kept = ("density", "speedup", "num_timed", "num_processes", "seconds")
    ratios = speed["speedup_of_each_pair"]
    return {
        **summary,
        **{key: speed[key] for key in kept},
        "speedup_range": [min(ratios), max(ratios)] if ratios else None,
        "fidelity": {
            name: {key: item[key] for key in ("mean", "ci95", "median", "p5_worst")}
            for name, item in fidelity["metrics"].items()
        },
        "unavailable": {**fidelity["unavailable"], **quality["unavailable"]},
        "quality": {
            name: {"reference": item["reference"], "candidate": item["candidate"], **_delta(item)}
            for name, item in quality["items"].items()
        },
        "comparable_to_vbench": False,
    }


def _delta(item: dict[str, Any]) -> dict[str, Any]:
    return {"delta": item["delta"]["mean"], "delta_ci95": item["delta"]["ci95"]}
