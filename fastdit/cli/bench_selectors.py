"""`fastdit bench selectors`: how near each way of choosing comes to dense attention, and what choosing costs."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.capture import load_calls
from fastdit.cli.bench_capture import PROMPTS, capture_calls
from fastdit.cli.bench_report import publish_report, show_progress
from fastdit.cli.call_options import DEFAULT_VIDEO
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.validation import check_choice, check_count
from fastdit_kernels.bench_machine import machine_line

if TYPE_CHECKING:
    from fastdit_eval.attention_heads import AttentionHeads

FULL_GRID, FULL_TILES = (7, 18, 22), (128, 64)
QUICK_GRID, QUICK_TILES = (5, 12, 16), (64, 32)
QUICK_DENSITIES = (0.08, 0.15, 0.3)
# Holds the finished cases of a measurement that was stopped.
CASE_FOLDER = "selectors.cases"
KIND_STYLE = {"ours": "bold", "oracle": "cyan", "baseline": ""}


def selectors(
    *,
    quick: bool = False,
    check: bool = False,
    captured: Path | None = None,
    recapture: bool = False,
    model: str = "tiny",
    families: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    grid: tuple[int, int, int] | None = None,
    tiles: tuple[int, int] | None = None,
    repeats: int | None = None,
    threads: int = 1,
    output: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare every selector with published ones and with the oracle, at equal density.

    Heads are synthetic with known structure, unless captured ones are asked for. With an output folder a stopped
    measurement goes on when the command is given again.

    Args:
        quick: A small grid, three densities, one head of each family.
        check: Use the second set of seeds, on which nothing was developed.
        captured: Use heads from a file of `fastdit bench capture`.
        recapture: Run the model now and use its heads.
        model: What to recapture: "tiny", a Diffusers folder, or a Hub id.
        families: Families of synthetic heads; default all.
        grid: Latent frames, token rows and token columns of the synthetic heads.
        tiles: Rows of query tiles and of key tiles.
        repeats: Timed runs of each selection; the median counts.
        threads: CPU threads.
        output: Folder for selectors.json and selectors.png.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.selector_bench import DENSITIES, run_selector_bench
    from fastdit_eval.selector_plot import draw_selector_bench

    repeats = (1 if quick else 3) if repeats is None else repeats
    for name, value in (("repeats", repeats), ("threads", threads)):
        check_count(name, value, 1)
    q_tile, kv_tile = tiles or (QUICK_TILES if quick else FULL_TILES)
    if min(q_tile, kv_tile) < 8 or q_tile % 8 or kv_tile % 8:
        raise ConfigError(f"tiles={(q_tile, kv_tile)}: accepted are multiples of 8")
    if sum((captured is not None, recapture, check or grid is not None or bool(families))) > 1:
        raise ConfigError("--captured, --recapture and the options of synthetic heads exclude each other: give one")
    torch.set_num_threads(threads)
    if captured is not None or recapture:
        groups = _captured(captured, model)
    else:
        groups = _synthetic(families, grid or (QUICK_GRID if quick else FULL_GRID), check, 1 if quick else 2)

    case_folder = None if output is None else output / CASE_FOLDER

    def measure() -> dict[str, Any]:
        with show_progress("selectors") as show:
            return run_selector_bench(
                groups,
                densities=QUICK_DENSITIES if quick else DENSITIES,
                q_tile=q_tile,
                kv_tile=kv_tile,
                repeats=repeats,
                progress=show,
                case_folder=case_folder,
            )

    publish_report(
        measure, _print_tables, name="selectors", output=output, json_output=json_output, draw=draw_selector_bench
    )
    if case_folder is not None:
        shutil.rmtree(case_folder, ignore_errors=True)


def _synthetic(
    families: tuple[str, ...], grid: tuple[int, int, int], check: bool, count: int
) -> list[Callable[[], AttentionHeads]]:
    from fastdit_eval.attention_heads import CHECK_SEEDS, FAMILIES, SEEDS, make_heads

    for name in families:
        check_choice("families", name, FAMILIES)
    frames, height, width = grid
    shape = VideoGrid(frames=frames, height=height, width=width)
    seeds = (CHECK_SEEDS if check else SEEDS)[:count]
    return [partial(make_heads, name, shape, seeds=seeds) for name in families or FAMILIES]


def _captured(path: Path | None, model: str) -> list[Callable[[], AttentionHeads]]:
    from fastdit_eval.captured_heads import captured_heads

    calls = capture_calls(model, PROMPTS, (), (), DEFAULT_VIDEO) if path is None else load_calls(path)
    return [partial(lambda heads: heads, heads) for heads in captured_heads(calls)]


def _print_tables(report: dict[str, Any]) -> None:
    console = Console()
    asked = report["settings"]["densities"]
    console.print(_mean_table(report, asked))
    console.print(_group_table(report, asked[len(asked) // 2]))
    console.print(machine_line(report["environment"]))
    console.print("Error: |o - o*| / |o*| against dense attention, mean over rows. -: the density cannot be reached.")
    console.print("select: time of the selection as a share of PyTorch's dense attention, median.")
    console.print("FLOPs: likewise those of the matrix products alone.")


def _mean_table(report: dict[str, Any], asked: list[float]) -> Table:
    """Mean error over all groups at every density, and what the selection costs."""
    table = Table(
        "selector", *(f"{density:g}" for density in asked), "recall", "select", "FLOPs", title="mean relative error"
    )
    middle = asked[len(asked) // 2]
    for selector in report["selectors"]:
        name = selector["name"]
        cases = [case for case in report["cases"] if case["selector"] == name]
        errors = [report["mean_error"][name][str(density)] for density in asked]
        recall = statistics.fmean(case["recall"] for case in cases if case["asked"] == middle)
        share = statistics.median(case["select_share_of_dense"] for case in cases)
        flops = statistics.median(case["select_flops_share_of_dense"] for case in cases)
        table.add_row(
            name,
            *("-" if error is None else f"{error:.3f}" for error in errors),
            "-" if errors[len(asked) // 2] is None else f"{recall:.2f}",
            *("-" if selector["kind"] == "oracle" else f"{cost:.1%}" for cost in (share, flops)),
            style=KIND_STYLE[selector["kind"]],
        )
    return table


def _group_table(report: dict[str, Any], density: float) -> Table:
    """The best of our methods and of the baselines in every group at one density."""
    columns = ("heads", "best of ours", "error", "best baseline", "error", "ours / theirs", "oracle")
    table = Table(*columns, title=f"relative error at density {density:g}")
    for group in report["groups"]:
        cases = [case for case in report["cases"] if (case["group"], case["asked"]) == (group, density)]
        ours, baseline, oracle = (_best(cases, kind) for kind in ("ours", "baseline", "oracle"))
        ratio = "-" if ours is None or baseline is None else f"{ours['error'] / baseline['error']:.2f}"
        table.add_row(group, *_named(ours), *_named(baseline), ratio, _named(oracle)[1])
    return table


def _best(cases: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The case of the least error among those that reached the density."""
    found = [case for case in cases if case["kind"] == kind and case["reached"]]
    return min(found, key=lambda case: float(case["error"]), default=None)


def _named(case: dict[str, Any] | None) -> tuple[str, str]:
    return ("-", "-") if case is None else (case["selector"], f"{case['error']:.3f}")
