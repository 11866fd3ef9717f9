"""What the library shows of runs, and what it does with them: report pages and deletion."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from fastdit.errors import InvalidInputError, OutputError
from fastdit_ui.recording import KIND
from fastdit_ui.runs import RunRecord, RunStore

HEADERS = ["run", "made", "kind", "model", "method", "prompt", "seed", "density", "PSNR, dB", "speed-up"]
PAGE = "report.html"
MAX_PROMPT_SHOWN = 80
DELETED = ".deleted-"


def kind_of(record: RunRecord) -> str:
    """`inside`, `compare` or `generate`."""
    return KIND if record.report.get("kind") == KIND else "compare" if "speedup" in record.report else "generate"


def rows(runs: RunStore, text: str = "", kind: str = "all") -> list[list[Any]]:
    """One row for each run, see `HEADERS`, newest first.

    Args:
        runs: The library.
        text: Only runs with this in name, model, method or prompt.
        kind: Only runs of this kind.
    """
    found = []
    for record in runs.list():
        report = record.report
        words = " ".join(str(report.get(key, "")) for key in ("model", "method", "title", "prompt")) + record.name
        if kind not in ("all", kind_of(record)) or text.lower() not in words.lower():
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.modified))
        prompt = str(report.get("prompt", ""))
        short = prompt if len(prompt) <= MAX_PROMPT_SHOWN else prompt[: MAX_PROMPT_SHOWN - 1] + "…"
        figures = [_number(report.get(key), form) for key, form in (("density", ".3f"), ("psnr", ".2f"))]
        speedup = _number(report.get("speedup"), ".2f")
        method = str(report.get("title") or report.get("method", ""))
        plain = [record.name, made, kind_of(record), str(report.get("model", "")), method, short]
        found.append([*plain, str(report.get("seed", "")), *figures, speedup])
    return found


def settings_text(record: RunRecord) -> str:
    """The report of a run as text."""
    return json.dumps(record.report, indent=2, ensure_ascii=False)


def videos(record: RunRecord) -> dict[str, Path]:
    """Videos of a run by name."""
    found = {name: record.file(f"{name}.mp4") for name in ("video", "side_by_side", "dense", "sparse")}
    return {name: path for name, path in found.items() if path is not None}


def make_report(runs: RunStore, name: str) -> Path:
    """The report page of a run, one HTML file that needs no other; `fastdit eval report` writes the same.

    Raises:
        InvalidInputError: There is no such run, or nothing to report of it.
        OutputError: It cannot be written.
    """
    record = runs.get(name)
    if kind_of(record) != "compare":
        raise InvalidInputError(f"run {name} has no dense video to hold against: make a report of a comparison")
    # Brings Matplotlib, which pages that make no report need not wait for.
    from fastdit_eval.run_report import write_report

    write_report(record.folder)
    return record.folder / PAGE


def delete_run(runs: RunStore, name: str) -> None:
    """Delete a run for good. It leaves the library in one step; links inside are removed, not followed.

    Raises:
        InvalidInputError: There is no such run.
        OutputError: It cannot be deleted.
    """
    record = runs.get(name)
    if record.folder.parent != runs.root:
        raise InvalidInputError(f"run {str(name)[:100]!r} is not in the library")
    doomed = runs.root / f"{DELETED}{record.name}"
    try:
        record.folder.replace(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise OutputError(f"run {name} cannot be deleted: {error.strerror or error}") from error


def finish_deletions(runs: RunStore) -> None:
    """Remove what a deletion that was interrupted has left."""
    for path in runs.root.glob(f"{DELETED}*"):
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
