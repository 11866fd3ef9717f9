"""`fastdit bench`: what sparse attention gains on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastdit.cli.output_folder import staged_output
from fastdit.validation import check_choice, check_count

app = App(name="bench", help="Measure what sparse attention gains on this machine.")
app.command("fastdit.cli.bench_cached:cached", name="cached")
app.command("fastdit.cli.bench_capture:capture", name="capture")
app.command("fastdit.cli.bench_selectors:selectors", name="selectors")


@app.command
def kernels(
    *,
    quick: bool = False,
    device: str | None = None,
    repeats: int = 5,
    threads: int = 1,
    output: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Time the block-sparse kernel against every dense one: on CUDA at the shapes of the supported models.

    A kernel that disagrees with the fp64 reference is not timed; the command then fails.

    Args:
        quick: One small shape, under a minute on one CPU core.
        device: cpu or cuda; default cuda where there is one.
        repeats: Timed rounds of each case; the median counts.
        threads: CPU threads.
        output: Folder for kernels.json and kernels.png.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.kernel_plot import draw_kernel_bench
    from fastdit_kernels.bench import run_bench

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("device", device, ("cpu", "cuda"))
    check_count("repeats", repeats, 1)
    check_count("threads", threads, 1)
    torch.set_num_threads(threads)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("kernels", total=None)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        report = run_bench(device=torch.device(device), quick=quick, repeats=repeats, progress=show)
    if output is not None:
        with staged_output(output) as folder:
            (folder / "kernels.json").write_text(json.dumps(report, indent=2) + "\n")
            draw_kernel_bench(report, folder / "kernels.png")
    if json_output:
        print(json.dumps(report))
    else:
        _print_table(report)


def _print_table(report: dict[str, Any]) -> None:
    console = Console()
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in report["cases"]:
        groups.setdefault(f"{case['model']}, {case['dtype']}, against {case['best_dense']}", []).append(case)
    for heading, cases in groups.items():
        console.print(_table(heading, cases))
    environment = report["environment"]
    console.print(f"{environment['device']}, {environment['threads']} thread(s), torch {environment['torch']}")
    console.print("Speed-up: median of paired runs against the best dense kernel. Of dense: speed over kept tiles.")
    console.print("select, gather, pool: share of the sparse call with all three.")


def _table(heading: str, cases: list[dict[str, Any]]) -> Table:
    table = Table("rows", "density", "speed-up", "range", "of dense", "select", "gather", "pool", title=heading)
    for case in cases:
        whole = case["sparse_seconds"] + sum(case[f"{name}_seconds"] for name in ("select", "gather", "pool"))
        low, high = case["speedup_range"]
        table.add_row(
            "uneven" if case["uneven_rows"] else "even",
            f"{case['density']:.3f}",
            f"{case['speedup']:.2f}x",
            f"{low:.2f}-{high:.2f}",
            f"{case['fraction_of_dense']:.2f}",
            *(f"{case[f'{name}_seconds'] / whole:.0%}" for name in ("select", "gather", "pool")),
        )
    return table
