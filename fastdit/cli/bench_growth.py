"""`fastdit bench growth`: time and memory of attention against the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.bench_report import publish_report, show_progress
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels.bench_machine import machine_line

TOKENS = (2048, 4096, 8192, 16384, 32768)
QUICK_TOKENS = (2048, 4096)


def growth(
    *,
    quick: bool = False,
    tokens: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    methods: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    density: float = 0.1,
    heads: int = 2,
    head_dim: int = 64,
    repeats: int | None = None,
    device: str | None = None,
    threads: int = 1,
    plot: Path | None = None,
    output: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure how time and memory of dense and sparse attention grow with the tokens.

    One layer of random heads; a sparse call is one in the middle of a run, its selection included.

    Args:
        quick: Two short lengths, one round.
        tokens: Lengths; default 2,048 to 32,768, each twice the one before.
        methods: adaptive, pyramid, cached, static; default all.
        density: Share of key tiles, of all methods.
        heads: Heads of the layer.
        head_dim: Their width.
        repeats: Timed rounds; the median counts.
        device: cpu or cuda; default cuda where there is one.
        threads: CPU threads.
        plot: PNG file to draw.
        output: Folder for growth.json and growth.png.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.bench_methods import BENCH_METHODS
    from fastdit_eval.growth_bench import run_growth_bench
    from fastdit_eval.growth_plot import draw_growth_bench

    lengths = tokens or (QUICK_TOKENS if quick else TOKENS)
    repeats = (1 if quick else 3) if repeats is None else repeats
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("device", device, ("cpu", "cuda"))
    check_fraction("density", density)
    for name, value in (("repeats", repeats), ("threads", threads), ("heads", heads), ("head_dim", head_dim)):
        check_count(name, value, 1)
    for length in lengths:
        check_count("tokens", length, 1)
    for method in methods:
        check_choice("methods", method, BENCH_METHODS)
    torch.set_num_threads(threads)

    def measure() -> dict[str, Any]:
        with show_progress("growth") as show:
            report = run_growth_bench(
                tokens=lengths,
                methods=methods or tuple(BENCH_METHODS),
                density=density,
                heads=heads,
                head_dim=head_dim,
                repeats=repeats,
                device=torch.device(device),
                progress=show,
            )
        if plot is not None:
            draw_growth_bench(report, plot)
        return report

    publish_report(
        measure, _print_tables, name="growth", output=output, json_output=json_output, draw=draw_growth_bench
    )


def _print_tables(report: dict[str, Any]) -> None:
    console = Console()
    settings = report["settings"]
    columns = ("tokens", "method", "density", "seconds", "x dense", "select", "move", "alone", "MB")
    title = f"{settings['heads']} heads x {settings['head_dim']}, density {settings['density']:g}, {settings['dtype']}"
    table = Table(*columns, title=title)
    for case in report["cases"]:
        speed = ["-"] * 4
        if case["name"] != "dense":
            speed = [f"{case['speedup']:.2f}"]
            speed += [f"{case['select_share']:.0%}", f"{case['move_share']:.0%}", f"{case['alone_seconds']:.3g}"]
        place = f"{case['tokens']:,}", case["name"], f"{case['density']:.3f}"
        table.add_row(*place, f"{case['seconds']:.3g}", *speed, f"{case['peak_bytes'] / 1e6:.0f}")
    console.print(table)
    for name, exponents in report["exponents"].items():
        found = {key: value for key, value in exponents.items() if value is not None}
        console.print(f"{name}: " + ", ".join(f"{key} ~ tokens^{value:.2f}" for key, value in found.items()))
    console.print(machine_line(report["environment"]))
    console.print("select, move: shares of the operator. alone: seconds of a call that settles orders anew.")
    console.print("MB: peak of torch's allocator over the inputs.")
