"""`report.json` of a run, in the layout of `fastdit generate`, with what the app adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdit.environment import describe_environment
from fastdit.whole_files import write_json
from fastdit_ui.request import RunRequest
from fastdit_ui.runs import REPORT


def write_report(folder: Path, request: RunRequest, figures: dict[str, Any]) -> dict[str, Any]:
    """Write and return the report of a run.

    Args:
        folder: The run's folder.
        request: What was asked for.
        figures: What was measured, and what else this kind of run tells.

    Raises:
        OutputError: It cannot be written.
    """
    report = {
        "model": request.model,
        "method": request.method,
        "title": request.title,
        "prompt": request.call["prompt"],
        "seed": request.call["seed"],
        "num_inference_steps": request.call["num_inference_steps"],
        **figures,
        "fps": request.fps,
        "tokens": request.size.tokens,
        "notes": list(request.size.notes),
        "image": request.image is not None,
        "settings": {name: value for name, value in request.call.items() if name != "seed"},
        "config": None if request.config is None else request.config.to_dict(),
        "environment": describe_environment(),
    }
    write_json(folder / REPORT, report)
    return report
