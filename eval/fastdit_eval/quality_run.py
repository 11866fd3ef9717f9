"""Offline quality of a sparse run as differences from the dense one, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.errors import InvalidInputError
from fastdit_eval.clips import pair_paths, read_clip
from fastdit_eval.fidelity_run import check_pair
from fastdit_eval.metric import MetricUnavailableError
from fastdit_eval.offline_quality import backbone, measure_clip
from fastdit_eval.summary_statistics import summarize_values

SCHEMA = "quality/1"
DEFINITIONS = {
    "temporal_flickering": "VBench's formula, without its filter for static clips: less motion scores higher",
    "motion_smoothness_dis": "VBench's protocol, middle frames by DIS flow instead of AMT-S",
    "dynamic_degree_dis": "VBench's thresholds, DIS flow instead of RAFT; share of clips that move",
    "flow_top5_dis": "mean flow of the fastest 5 % of pixels, in pixels per sampled pair",
}


def measure_quality(
    dense: Path,
    sparse: Path,
    fps: float | None = None,
    names: Collection[str] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, Any]:
    """Indicators of both runs and their differences.

    Args:
        dense: Reference: a clip or a folder.
        sparse: Likewise, with the same names.
        fps: Frames per second of raw frames; encoded videos say theirs.
        names: Of folders only these clips; `None` for all.
        progress: Told pairs done, pairs in all and the name.

    Returns:
        `{"schema", "items": {name: {"reference", "candidate", "delta", ...}}, "unavailable", "pairs"}`. `reference` and
        `candidate` are means over prompts, `delta` the summary of the differences of each prompt.

    Raises:
        InvalidInputError: Clips do not match.
    """
    if fps is not None and not fps > 0:
        raise InvalidInputError(f"fps={fps}: accepted is a number above 0")
    pairs = pair_paths(dense, sparse, names)
    rows: list[dict[str, Any]] = []
    unavailable: dict[str, str] = {}
    for done, (name, first, second) in enumerate(pairs):
        progress(done, len(pairs), name)
        clips = [read_clip(path) for path in (first, second)]
        check_pair(*clips)
        values = [measure_clip(clip.bytes(), fps or clip.fps, unavailable) for clip in clips]
        rows.append({"name": name, "reference": values[0], "candidate": values[1]})
    progress(len(pairs), len(pairs), "")
    return {
        "schema": SCHEMA,
        "dense": str(dense),
        "sparse": str(sparse),
        "items": {name: _item(name, rows) for name in DEFINITIONS if name not in unavailable},
        "unavailable": unavailable,
        "pairs": rows,
    }


def _item(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {side: [row[side][name] for row in rows] for side in ("reference", "candidate")}
    differences = np.subtract(columns["candidate"], columns["reference"])
    return {
        "reference": float(np.mean(columns["reference"])),
        "candidate": float(np.mean(columns["candidate"])),
        "delta": summarize_values(differences.tolist()),
        "definition": DEFINITIONS[name],
        "backbone": None if name == "temporal_flickering" else _backbone(),
        "filtered": False,
        "comparable_to_vbench": False,
    }


def _backbone() -> str | None:
    try:
        return backbone()
    except MetricUnavailableError:
        return None
