"""What a run folder holds: results, comparisons of `fastdit generate`, and pairs of videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdit.errors import InvalidInputError
from fastdit_eval.fidelity_run import worst_pairs
from fastdit_eval.result_files import read_result, read_results

KINDS = ("fidelity", "quality", "speed", "judge")


def read_run(run: Path) -> dict[str, Any]:
    """Everything a report shows.

    Args:
        run: A folder with `results/`, with `report.json` of `fastdit generate --compare` at any depth, or both.

    Returns:
        `rows` (one per method or run: name, psnr, ssim, speedup, density, ...), the results of each of `KINDS` by
        name, `environments` and `commands`, each once, and `videos` (title, dense and sparse path).

    Raises:
        InvalidInputError: There is nothing to report, or a file is damaged.
    """
    results = {kind: read_results(run, kind) for kind in KINDS}
    comparisons = dict(_comparisons(run))
    sources = [*comparisons.values(), *(result for kind in KINDS for result in results[kind].values())]
    if not sources:
        raise InvalidInputError(
            f"{run} holds no results: run 'fastdit eval fidelity --output {run}' or 'fastdit generate --compare' first"
        )
    rows = [_comparison_row(name, report) for name, report in comparisons.items()]
    names = sorted({name for kind in KINDS for name in results[kind]}, key=lambda name: (name != "dense", name))
    floors = {(result.get("noise_floor") or {}).get("run") for result in results["fidelity"].values()}
    rows += [_result_row(name, {kind: results[kind].get(name) for kind in KINDS}, name in floors) for name in names]
    return {
        **results,
        "rows": mark_front(rows),
        "environments": _each_once(source.get("environment") for source in sources),
        "commands": _each_once(source.get("command") for source in sources),
        "videos": [*_compared_videos(run, comparisons), *_worst_videos(results["fidelity"])],
    }


def mark_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `pareto`: whether no other row is at least as fast and as close to dense, and better in one of both.

    The dense run that is the noise floor of others is no method, and neither on the front nor beating anybody.
    """

    def beaten(row: dict[str, Any]) -> bool:
        mine = (row["speedup"], row["psnr"])
        others = [(other["speedup"], other["psnr"]) for other in rows if _is_point(other)]
        return any(a >= mine[0] and b >= mine[1] and (a, b) != mine for a, b in others)

    return [{**row, "pareto": _is_point(row) and not beaten(row)} for row in rows]


def _is_point(row: dict[str, Any]) -> bool:
    return row["speedup"] is not None and row["psnr"] is not None and not row.get("is_floor")


def _comparisons(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(run.rglob("report.json")):
        report = read_result(path)
        if report is not None and {"speedup", "psnr", "density"} <= report.keys():
            name = path.parent.relative_to(run).as_posix()
            yield report["method"] if name == "." else name, {**report, "folder": path.parent}


def _comparison_row(name: str, report: dict[str, Any]) -> dict[str, Any]:
    row = {key: report.get(key) for key in ("method", "psnr", "ssim", "speedup", "density")}
    return {
        "name": name,
        **row,
        "convention": report.get("fidelity_convention"),
        "num_prompts": 1,
        "flicker": None,
        "judge": None,
    }


def _result_row(name: str, found: dict[str, dict[str, Any] | None], is_floor: bool) -> dict[str, Any]:
    fidelity, quality, speed, judge = ((found[kind] or {}) for kind in KINDS)
    metrics = fidelity.get("metrics", {})
    flicker = quality.get("items", {}).get("temporal_flickering")
    return {
        "name": name,
        "method": speed.get("method"),
        "psnr": metrics["psnr_rgb"]["mean"] if "psnr_rgb" in metrics else speed.get("psnr"),
        "ssim": metrics["ssim"]["mean"] if "ssim" in metrics else speed.get("ssim"),
        "speedup": speed.get("speedup"),
        "density": speed.get("density"),
        "convention": fidelity.get("convention", speed.get("fidelity_convention")),
        "num_prompts": len(fidelity.get("pairs", [])) or None,
        "flicker": flicker["delta"]["mean"] if flicker else None,
        "judge": judge.get("shares", {}).get("all"),
        "is_floor": is_floor,
    }


def _each_once(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _compared_videos(run: Path, comparisons: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Path, Path]]:
    for name, report in comparisons.items():
        pair = [report["folder"] / f"{side}.mp4" for side in ("dense", "sparse")]
        if all(path.is_file() for path in pair):
            yield f"{name}: {report['prompt']}", pair[0], pair[1]


def _worst_videos(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Path, Path]]:
    for name, result in results.items():
        if not result.get("complete"):
            continue
        for row in worst_pairs(result):
            pair = [_video_of(Path(row[side])) for side in ("dense", "sparse")]
            if all(path.suffix == ".mp4" and path.is_file() for path in pair):
                yield f"{name}: {row['name']} (among the worst)", pair[0], pair[1]


def _video_of(clip: Path) -> Path:
    """The video of lossless frames, where a suite keeps both: `videos/<row>/` beside `frames/<row>/`."""
    if clip.suffix == ".npz" and clip.parent.parent.name == "frames":
        return clip.parents[2] / "videos" / clip.parent.name / f"{clip.stem}.mp4"
    return clip
