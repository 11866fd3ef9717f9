"""Reading official result files strictly: one odd file makes the official total wrong without a word."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit_eval.vbench.files import VBenchError, read_json

ENDING = "_eval_results.json"
# Official means of fp32 numbers may pass 1 by rounding.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Result:
    """One dimension's official result.

    Args:
        score: The raw score, in [0, 1].
        videos: File names it was measured on; `None` where the package does not list them.
        path: The official file.
    """

    score: float
    videos: tuple[str, ...] | None
    path: Path


def read_results(folder: Path, known: Collection[str]) -> dict[str, Result]:
    """Results of a folder, by dimension.

    Args:
        folder: It holds official `*_eval_results.json` files and nothing else.
        known: Names of the dimensions.

    Raises:
        VBenchError: A file is no official result, a dimension is unknown or given twice, a score is NaN.
    """
    if not folder.is_dir():
        raise VBenchError(f"{folder} does not exist: run the official package first")
    results: dict[str, Result] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(ENDING):
            raise VBenchError(f"{path} is no official result ('*{ENDING}'): move it away, it would pollute the total")
        for name, result in read_result_file(path).items():
            if name not in known:
                raise VBenchError(f"{path}: {name!r} is no dimension of this benchmark")
            if name in results:
                raise VBenchError(f"{name} is in {results[name].path.name} and in {path.name}: keep one")
            results[name] = result
    return results


def read_result_file(path: Path) -> dict[str, Result]:
    """Results of one official file: `{dimension: [score, [{"video_path", "video_results"}, ...], ...]}`.

    Raises:
        VBenchError: It has another layout, or a number in it is NaN, infinite or out of range.
    """
    data = read_json(path, "result file")
    if not isinstance(data, dict) or not data:
        raise VBenchError(f"{path} is no official result: accepted is {{dimension: [score, [videos]]}}")
    return {name: _result(name, value, path) for name, value in data.items()}


def _result(name: str, value: Any, path: Path) -> Result:
    if not isinstance(value, list) or not value or isinstance(value[0], bool) or not isinstance(value[0], (int, float)):
        raise VBenchError(f"{path}: {name!r} is not [score, [videos]]")
    score = float(value[0])
    if not math.isfinite(score):
        raise VBenchError(f"{path}: {name} is {score}: no clip was measured, or one of them badly")
    if not -TOLERANCE <= score <= 1 + TOLERANCE:
        raise VBenchError(f"{path}: {name} is {score}: an official score lies between 0 and 1")
    rows = value[1] if len(value) > 1 and isinstance(value[1], list) else []
    listed = [row for row in rows if isinstance(row, dict) and "video_path" in row]
    for row in listed:
        if _has_nan(row):
            raise VBenchError(f"{path}: {name} of {Path(row['video_path']).name!r} is not a number")
    names = tuple(Path(row["video_path"]).name for row in listed)
    return Result(score=score, videos=names or None, path=path)


def _has_nan(data: Any) -> bool:
    if isinstance(data, float):
        return not math.isfinite(data)
    if isinstance(data, dict):
        return any(map(_has_nan, data.values()))
    return isinstance(data, list) and any(map(_has_nan, data))
