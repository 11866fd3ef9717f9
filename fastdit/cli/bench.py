"""`fastdit bench`: what sparse attention gains on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.bench_report import publish_report, show_progress
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels.bench_machine import machine_line

app = App(name="bench", help="Measure on this machine what sparse attention gains and loses.")
app.command("fastdit.cli.bench_cached:cached", name="cached")
app.command("fastdit.cli.bench_capture:capture", name="capture")
app.command("fastdit.cli.bench_e2e:e2e", name="e2e")
app.command("fastdit.cli.bench_growth:growth", name="growth")
app.command("fastdit.cli.bench_selectors:selectors", name="selectors")
app.command("fastdit.cli.bench_search:search", name="search")
app.command("fastdit.cli.bench_search:estimator", name="estimator")


@app.command
def kernels(
    *,
    quick: bool = False,
    shapes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    densities: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (),
    device: str | None = None,
    repeats: int = 5,
    threads: int = 1,
    output: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Time the block-sparse kernel against every dense one.

    On CUDA at the shapes of the supported models. A kernel that disagrees with the fp64 reference is not timed, and the
    command fails.

    Args:
        quick: One small shape unless some are named, two densities: under a minute on one CPU core.
        shapes: Names of shapes, e.g. "Wan2.1-14B 720x1280x81" or "32,768 tokens, 1 head x 64", instead of the default
            ones.
        densities: Shares of tiles kept, instead of the default ones.
        device: cpu or cuda; default cuda where there is one.
        repeats: Timed rounds of each case; the median counts.
        threads: CPU threads.
        output: Folder for kernels.json and kernels.png.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.kernel_plot import draw_kernel_bench
    from fastdit_kernels.bench import run_bench
    from fastdit_kernels.bench_shapes import CPU_SHAPES, LONG_CPU_SHAPES, MODEL_SHAPES

    known = {shape.name: shape for shape in (*MODEL_SHAPES, *CPU_SHAPES, *LONG_CPU_SHAPES)}
    for name in shapes:
        check_choice("shapes", name, known)
    for density in densities:
        check_fraction("densities", density)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("device", device, ("cpu", "cuda"))
    check_count("repeats", repeats, 1)
    check_count("threads", threads, 1)
    torch.set_num_threads(threads)

    def measure() -> dict[str, Any]:
        with show_progress("kernels") as show:
            return run_bench(
                device=torch.device(device),
                quick=quick,
                shapes=tuple(known[name] for name in shapes) or None,
                densities=densities or None,
                repeats=repeats,
                progress=show,
            )

    publish_report(
        measure, _print_table, name="kernels", output=output, json_output=json_output, draw=draw_kernel_bench
    )


def _print_table(report: dict[str, Any]) -> None:
    console = Console()
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in report["cases"]:
        groups.setdefault(f"{case['model']}, {case['dtype']}, against {case['best_dense']}", []).append(case)
    for heading, cases in groups.items():
        console.print(_table(heading, cases))
    console.print(machine_line(report["environment"]))
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
