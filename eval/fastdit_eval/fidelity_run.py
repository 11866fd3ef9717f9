"""Fidelity of a sparse run to the dense one: prompt by prompt, continued where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.errors import InvalidInputError
from fastdit.whole_files import write_json
from fastdit_eval.clips import Clip, pair_paths, read_clip
from fastdit_eval.contact_sheet import draw_contact_sheet
from fastdit_eval.conventions import CONVENTIONS
from fastdit_eval.metric import Metric, MetricUnavailableError
from fastdit_eval.result_files import read_result
from fastdit_eval.summary_statistics import summarize_values

SCHEMA = "fidelity/1"
NUM_WORST = 3


def measure_run(
    dense: Path,
    sparse: Path,
    *,
    convention: str = "default",
    floor: Path | None = None,
    metrics: Sequence[str] | None = None,
    store: Path | None = None,
    names: Collection[str] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, Any]:
    """Compare two clips, or two folders of clips with the same names.

    Args:
        dense: Reference: a clip or a folder.
        sparse: Likewise.
        convention: A name of `CONVENTIONS`.
        floor: The dense run with another dense backend: what difference means nothing.
        metrics: Names to compute; `None` for all of the convention.
        store: Result file; written after every pair, and pairs in it that have not changed are not measured again.
        names: Of folders only these clips; `None` for all.
        progress: Told pairs done, pairs in all and the name.

    Returns:
        `{"schema", "convention", "metrics", "unavailable", "pairs", "noise_floor", ...}`; see the README.

    Raises:
        InvalidInputError: Clips do not match, or a name is unknown.
    """
    chosen = choose_metrics(convention, metrics)
    pairs = pair_paths(dense, sparse, names)
    old = None if store is None else read_result(store)
    known = _known_rows(old, convention)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "convention": "pab" if convention == "default" else convention,
        "dense": str(dense),
        "sparse": str(sparse),
        "complete": False,
    }
    rows: list[dict[str, Any]] = []
    for done, (name, first, second) in enumerate(pairs):
        progress(done, len(pairs), name)
        row = _measure_pair(name, first, second, chosen, known.get(name))
        rows.append(row)
        if store is not None and len(rows) < len(pairs):
            write_json(store, {**report, "pairs": rows})
    report |= _totals(rows, chosen)
    report["noise_floor"] = None if floor is None else _floor(dense, floor, chosen)
    report["pairs"] = rows
    report["complete"] = True
    if store is not None:
        write_json(store, report)
    progress(len(pairs), len(pairs), "")
    return report


def choose_metrics(convention: str, names: Sequence[str] | None) -> list[Metric]:
    """Metrics of a convention by name.

    Raises:
        InvalidInputError: A name is unknown.
    """
    if convention not in CONVENTIONS:
        raise InvalidInputError(f"convention={convention!r}: accepted are {', '.join(map(repr, CONVENTIONS))}")
    offered = {metric.name: metric for metric in CONVENTIONS[convention]}
    for name in names or ():
        if name not in offered:
            raise InvalidInputError(f"metric {name!r}: convention {convention!r} has {', '.join(offered)}")
    return list(offered.values()) if not names else [offered[name] for name in dict.fromkeys(names)]


def _measure_pair(
    name: str, first: Path, second: Path, metrics: Sequence[Metric], known: dict[str, Any] | None
) -> dict[str, Any]:
    """One row; values of `known` are taken over if the files are still the ones it was made from.

    What was unavailable is tried again: its package may have been installed since.
    """
    stamp = [_stamp(first), _stamp(second)]
    made_from = [str(first), str(second), stamp]
    same = known is not None and [known["dense"], known["sparse"], known["stamp"]] == made_from
    per_frame: dict[str, list[float]] = dict(known["per_frame"]) if known is not None and same else {}
    lacking = [metric for metric in metrics if metric.name not in per_frame]
    if known is not None and per_frame and not lacking:
        return known
    dense, sparse = read_clip(first), read_clip(second)
    check_pair(dense, sparse)
    unavailable = {}
    for metric in lacking:
        try:
            per_frame[metric.name] = metric.per_frame(dense, sparse)
        except MetricUnavailableError as error:
            unavailable[metric.name] = str(error)
    count, height, width = dense.frames.shape[:3]
    return {
        "name": name,
        "dense": str(first),
        "sparse": str(second),
        "source": f"{dense.source}, {sparse.source}" if dense.source != sparse.source else dense.source,
        "num_frames": count,
        "height": height,
        "width": width,
        "values": {key: float(np.mean(values)) for key, values in per_frame.items()},
        "per_frame": per_frame,
        "unavailable": unavailable,
        "stamp": stamp,
    }


def check_pair(dense: Clip, sparse: Clip) -> None:
    """Refuse two clips that cannot be the same video dense and sparse.

    Raises:
        InvalidInputError: Shape or frame rate differ.
    """
    if dense.frames.shape != sparse.frames.shape:
        raise InvalidInputError(
            f"{dense.path} has frames, height, width, channels {dense.frames.shape} and {sparse.path} "
            f"{sparse.frames.shape}: fidelity is between runs of one size"
        )
    if dense.fps is not None and sparse.fps is not None and abs(dense.fps - sparse.fps) > 0.01:
        raise InvalidInputError(f"{dense.path} has {dense.fps} fps and {sparse.path} {sparse.fps}: write both alike")


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _known_rows(old: dict[str, Any] | None, convention: str) -> dict[str, dict[str, Any]]:
    if old is None or old.get("convention") != ("pab" if convention == "default" else convention):
        return {}
    return {row["name"]: row for row in old.get("pairs", [])}


def _totals(rows: Sequence[dict[str, Any]], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Summary of each metric; one that any pair lacks is unavailable, because means over fewer pairs do not compare."""
    unavailable: dict[str, str] = {}
    totals: dict[str, Any] = {}
    for metric in metrics:
        lacking = [row for row in rows if metric.name not in row["values"]]
        if lacking:
            unavailable[metric.name] = lacking[0]["unavailable"][metric.name]
            continue
        totals[metric.name] = {
            **summarize_values([row["values"][metric.name] for row in rows], metric.higher_is_better),
            "higher_is_better": metric.higher_is_better,
            "implementation": metric.implementation,
        }
    return {"metrics": totals, "unavailable": unavailable}


def _floor(dense: Path, floor: Path, metrics: Sequence[Metric]) -> dict[str, Any]:
    rows = [_measure_pair(*pair, metrics, None) for pair in pair_paths(dense, floor)]
    return {"run": str(floor), **_totals(rows, metrics)}


def worst_pairs(report: dict[str, Any], count: int = NUM_WORST) -> list[dict[str, Any]]:
    """Pairs with the least PSNR, the worst first; without PSNR, of the first metric that was computed."""
    metrics = report["metrics"]
    if not metrics:
        return []
    name = "psnr_rgb" if "psnr_rgb" in metrics else next(iter(metrics))
    sign = 1 if metrics[name]["higher_is_better"] else -1
    return sorted(report["pairs"], key=lambda row: sign * row["values"][name])[:count]


def draw_worst(report: dict[str, Any], path: Path) -> None:
    """Write a contact sheet of the worst pairs: a row of dense and a row of sparse frames for each."""
    clips = []
    for row in worst_pairs(report):
        shown = ", ".join(f"{key} {value:.4g}" for key, value in row["values"].items())
        clips.append((f"{row['name']}: dense", read_clip(Path(row["dense"])).unit()))
        clips.append((f"sparse: {shown}", read_clip(Path(row["sparse"])).unit()))
    if clips:
        draw_contact_sheet(clips, path)
