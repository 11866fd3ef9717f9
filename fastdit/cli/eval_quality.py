"""`fastdit eval quality`: indicators of video quality that need no network, sparse against dense."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.eval_fidelity import progress_bar
from fastdit.environment import describe_environment
from fastdit.whole_files import write_json


def quality(
    *,
    dense: Path,
    sparse: Path,
    fps: float | None = None,
    output: Path | None = None,
    name: str | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure flicker, smoothness and amount of motion of sparse videos, as differences from the dense ones.

    These are no VBench scores: names ending in _dis use another optical flow than VBench.

    Args:
        dense: Reference: a video, raw frames (.npy, .npz), or a folder of these.
        sparse: Likewise; files of folders are paired by name.
        fps: Frames per second of raw frames; encoded videos say theirs.
        output: Run folder; results go to results/quality-NAME.json.
        name: Name of the result; default that of the sparse file or folder.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.quality_run import measure_quality
    from fastdit_eval.result_files import result_path

    store = None if output is None else result_path(output, "quality", name or sparse.resolve().stem)
    with progress_bar("quality") as show:
        report = measure_quality(dense, sparse, fps, progress=show)
    report |= {"environment": describe_environment(), "command": " ".join(["fastdit", *sys.argv[1:]])}
    if store is not None:
        write_json(store, report)
    if json_output:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_quality(report)


def _print_quality(report: dict[str, Any]) -> None:
    console = Console()
    table = Table("indicator", "dense", "sparse", "difference", "95 % interval", title="offline quality")
    for name, item in report["items"].items():
        low, high = item["delta"]["ci95"] or (None, None)
        interval = "-" if low is None else f"{low:+.5f} to {high:+.5f}"
        cells = (f"{item['reference']:.5f}", f"{item['candidate']:.5f}", f"{item['delta']['mean']:+.5f}", interval)
        table.add_row(name, *cells)
    console.print(table)
    for name, reason in report["unavailable"].items():
        console.print(f"{name} unavailable: {reason}", highlight=False, markup=False)
    console.print("Not comparable to VBench scores. Read flicker beside flow_top5_dis: a frozen video flickers least.")
