"""`fastdit eval fidelity` and `fastdit eval tensors`: how far a sparse run is from the dense one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastdit.environment import describe_environment
from fastdit.validation import check_count
from fastdit.whole_files import write_json


def fidelity(
    *,
    dense: Path,
    sparse: Path,
    convention: str = "default",
    floor: Path | None = None,
    metrics: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = None,
    output: Path | None = None,
    name: str | None = None,
    rows: int = 10,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare sparse videos with the dense ones of the same prompts and seeds.

    A metric that cannot be computed here is reported as unavailable with the reason.

    Args:
        dense: Reference: a video, raw frames (.npy, .npz), or a folder of these.
        sparse: Likewise; files of folders are paired by name.
        convention: default, pab or svg: whose PSNR, SSIM and LPIPS; default is pab.
        floor: The dense run with another dense attention backend: the noise floor.
        metrics: Names to compute, e.g. psnr_rgb ssim; default all of the convention.
        output: Run folder; results go to results/fidelity-NAME.json and the worst pairs to a contact sheet beside it.
            Measuring again continues an interrupted run.
        name: Name of the result; default that of the sparse file or folder.
        rows: Prompts to list, the worst first.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.fidelity_run import draw_worst, measure_run
    from fastdit_eval.result_files import result_path

    check_count("rows", rows, 1)
    store = None if output is None else result_path(output, "fidelity", name or sparse.resolve().stem)
    with progress_bar("fidelity") as show:
        report = measure_run(
            dense, sparse, convention=convention, floor=floor, metrics=metrics, store=store, progress=show
        )
    report |= {"environment": describe_environment(), "command": " ".join(["fastdit", *sys.argv[1:]])}
    if store is not None:
        write_json(store, report)
        draw_worst(report, store.with_suffix(".png"))
    if json_output:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_fidelity(report, rows)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A transient bar on standard error; yields what takes done, total and the name of the current piece."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {name}")

        yield show


def _print_fidelity(report: dict[str, Any], rows: int) -> None:
    from fastdit_eval.fidelity_run import worst_pairs

    console = Console()
    floor = (report["noise_floor"] or {}).get("metrics", {})
    columns = ("metric", "mean", "95 % interval", "median", "worst 5 %", *(["noise floor"] if floor else []))
    table = Table(*columns, title=f"fidelity to dense, convention {report['convention']}")
    for name, row in report["metrics"].items():
        low, high = row["ci95"] or (None, None)
        cells = [f"{row['mean']:.4f}", "-" if low is None else f"{low:.4f} to {high:.4f}"]
        cells += [f"{row['median']:.4f}", f"{row['p5_worst']:.4f}"]
        if floor:
            cells.append(f"{floor[name]['mean']:.4f}" if name in floor else "-")
        table.add_row(name, *cells)
    console.print(table)
    for name, reason in report["unavailable"].items():
        console.print(f"{name} unavailable: {reason}", highlight=False, markup=False)
    for name, row in report["metrics"].items():
        console.print(f"{name}: {row['implementation']}", highlight=False, markup=False)
    sources = sorted({row["source"] for row in report["pairs"]})
    console.print(f"{len(report['pairs'])} pair(s), read as {', '.join(sources)}; intervals: bootstrap over prompts")
    if len(report["pairs"]) > 1 and report["metrics"]:
        names = list(report["metrics"])
        table = Table("prompt", *names, title="worst first")
        for row in worst_pairs(report, rows):
            table.add_row(row["name"], *(f"{row['values'][name]:.4f}" for name in names))
        console.print(table)


def tensors(*, dense: Path, sparse: Path, json_output: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Compare latents or attention outputs, which no decoder and no codec has touched.

    Args:
        dense: NumPy file of the dense run.
        sparse: NumPy file of the sparse run, of the same shape.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.clips import read_array
    from fastdit_eval.tensor_fidelity import tensor_fidelity

    report = tensor_fidelity(read_array(dense), read_array(sparse))
    if json_output:
        print(json.dumps(report))
        return
    table = Table(*report)
    table.add_row(*(f"{value:.5f}" for value in report.values()))
    Console().print(table)
