"""`fastdit bench cached`: what reusing masks loses and saves over the steps of a captured run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.capture import load_calls
from fastdit.cli.bench_report import publish_report
from fastdit.errors import ConfigError
from fastdit.validation import check_choice, check_count, check_fraction


def cached(
    *,
    captured: Path,
    density: float = 0.2,
    refresh_every: int = 10,
    tiles: tuple[int, int] = (128, 64),
    variants: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    repeats: int = 3,
    threads: int = 1,
    output: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare masks reused over steps with masks chosen anew in every step: error, and cost of choosing.

    Args:
        captured: File of `fastdit bench capture` with consecutive steps, e.g. --steps 2 3 4 5 6 7 8 9 10 11.
        density: Share of key tiles.
        refresh_every: Steps after which masks are built anew.
        tiles: Rows of query tiles and of key tiles.
        variants: Names of what to compare; default all.
        repeats: Times every run is followed; the median of the seconds counts.
        threads: CPU threads.
        output: Folder for cached.json.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.cached_bench import cached_variants, run_cached_bench

    for name, value in (("repeats", repeats), ("threads", threads)):
        check_count(name, value, 1)
    check_fraction("density", density)
    if min(tiles) < 8 or tiles[0] % 8 or tiles[1] % 8:
        raise ConfigError(f"tiles={tiles}: accepted are multiples of 8")
    known = cached_variants(density, refresh_every, *tiles)
    for name in variants:
        check_choice("variants", name, known)
    torch.set_num_threads(threads)
    chosen = {name: known[name] for name in variants or known}
    measure = partial(run_cached_bench, load_calls(captured), chosen, repeats=repeats)
    show = partial(_print_table, refresh_every=refresh_every)
    publish_report(measure, show, name="cached", output=output, json_output=json_output)


def _print_table(report: dict[str, Any], refresh_every: int) -> None:
    console = Console()
    columns = ("variant", "error reused", "recomputed", "ratio", "selection cost", "of dense", "settling", "density")
    table = Table(*columns, title=f"masks refreshed every {refresh_every} steps, beside every step")
    for name, row in report["summary"].items():
        table.add_row(
            name,
            f"{row['cached_error']:.3f}",
            f"{row['fresh_error']:.3f}",
            f"{row['error_ratio']:.3f}",
            f"{row['cost_ratio']:.1%}",
            f"{row['cost_of_dense']:.1%}",
            f"{row['settling_in_selections']:.1f}",
            f"{row['density']:.3f}",
        )
    console.print(table)
    console.print(
        "Cost: as a share of selecting in every step, and of dense attention. Settling: orders of heads, once"
    )
    console.print("in a run with reuse and without, in selections; it is not in the shares.")
    for name, row in report["summary"].items():
        ages = ", ".join(f"{age}: {ratio:.2f}" for age, ratio in row["error_ratio_by_age"].items())
        console.print(f"{name}: error ratio by steps since the masks were built: {ages}")
