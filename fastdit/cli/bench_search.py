"""`fastdit bench search` and `fastdit bench estimator`: what searched plans keep and save, and if it is foreseen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.generate import call_arguments
from fastdit.errors import ConfigError, OutputError
from fastdit.validation import check_count
from fastdit.whole_files import write_json

# Small enough for minutes on a CPU; tiles small enough for its tokens.
QUICK_CALL = {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 4}
QUICK_TILES = (32, 16)


@Parameter(name="*", group="Video")
@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Size of the clips; unset ones take the model's defaults, or those of --quick.

    Args:
        size: Height and width in pixels.
        frames: Frames.
        steps: Denoising steps.
        tiles: Rows of query tiles and of key tiles.
    """

    size: int | None = None
    frames: int | None = None
    steps: int | None = None
    tiles: tuple[int, int] | None = None

    def call(self, model: str, quick: bool) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        given = {
            "height": self.size,
            "width": self.size,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
        }
        small: dict[str, Any] = dict(QUICK_CALL) if quick else {}
        arguments, _ = call_arguments(model, small | {name: value for name, value in given.items() if value})
        return arguments

    def tile_rows(self, quick: bool) -> tuple[int, int]:
        """Tile sizes."""
        return self.tiles or (QUICK_TILES if quick else (128, 64))


@Parameter(name="*", group="Uniform settings")
@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """The grid of uniform settings.

    Args:
        uniform: Whether to search it.
        tuning: Held-out prompts that it is searched on.
        densities: Of the adaptive and the pyramid method, rising.
        windows: Reach of the static pattern in frames, rising.
        dense_steps: Shares of dense steps, rising; every other one first, the others beside the good ones.
    """

    uniform: bool = True
    tuning: int = 4
    densities: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.03, 0.06, 0.12, 0.2, 0.3, 0.45, 0.65)
    windows: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 2, 4, 8)
    dense_steps: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)


def search(
    *,
    output: Path,
    model: str = "tiny",
    prompts: Path | None = None,
    promises: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (26.0, 30.0, 34.0),
    calibration: int = 8,
    held_out: int = 30,
    quick: bool = False,
    threads: int = 2,
    grid: GridOptions = GridOptions(),
    size: SizeOptions = SizeOptions(),
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure searched plans on held-out prompts, beside the best uniform setting of the same mean PSNR.

    Every run is kept in OUTPUT/runs; a stopped measurement goes on when it is called again.

    Args:
        output: Folder for search.json, the plans and the runs.
        model: "tiny", a Diffusers folder, or a Hub id.
        prompts: Text file, one prompt a line, calibration first; for "tiny" prompts are drawn.
        promises: Mean PSNR to promise, in dB.
        calibration: Prompts of the searches.
        held_out: Prompts that the plans are measured on.
        quick: Small clips, 4 calibration and 4 held-out prompts, one promise.
        threads: CPU threads.
        grid: Uniform settings.
        size: Of the clips.
        json_output: Print the report as JSON on standard output.
    """
    counts = {"calibration": calibration, "held_out": held_out, "tuning": grid.tuning, "threads": threads}
    for name, value in counts.items():
        check_count(name, value, 1)
    if quick:
        calibration, held_out, promises = min(calibration, 4), min(held_out, 4), promises[1:2] or promises
    listed = _prompts(model, prompts, calibration + held_out)
    torch.set_num_threads(threads)
    from fastdit_eval.search_figures import FigureSettings, measure_search
    from fastdit_pipelines.loading import load_pipeline

    settings = FigureSettings(
        calibration=listed[:calibration],
        held_out=listed[calibration:],
        promises=promises,
        call=size.call(model, quick),
        tiles=size.tile_rows(quick),
        num_tuning=grid.tuning,
        densities=grid.densities,
        windows=grid.windows,
        dense_steps=grid.dense_steps,
    )
    _make_folder(output)
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    report = measure_search(pipe, settings, output, with_uniform=grid.uniform)
    write_json(output / "search.json", report)
    if json_output:
        print(json.dumps(report))
    else:
        _print_figures(report)


def estimator(
    *,
    output: Path,
    model: str = "tiny",
    prompts: Path | None = None,
    items: int = 60,
    plans: int = 6,
    modes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("skip", "adaptive_0.2", "pyramid_0.12"),
    threads: int = 2,
    size: SizeOptions = SizeOptions(size=64, frames=17, steps=6, tiles=QUICK_TILES),
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare errors that the search predicts with those of real runs.

    Heads are sparse one at a time; then plans with random modes are run.

    Args:
        output: Folder for estimator.json and the runs.
        model: "tiny", a Diffusers folder, or a Hub id.
        prompts: Text file, the first line is run; for "tiny" one is drawn.
        items: Heads, each in one phase and one mode, that are run alone.
        plans: Plans with random modes that are run.
        modes: Modes of the ladder that heads take.
        threads: CPU threads.
        size: Of the clip.
        json_output: Print the report as JSON on standard output.
    """
    for name, value in (("items", items), ("plans", plans), ("threads", threads)):
        check_count(name, value, 1)
    listed = _prompts(model, prompts, 2)
    torch.set_num_threads(threads)
    from fastdit.search.ladder import default_ladder
    from fastdit.search.settings import SearchSettings
    from fastdit_eval.estimator_check import check_estimator
    from fastdit_pipelines.loading import load_pipeline

    settings = SearchSettings(
        prompts=listed,
        min_psnr=30.0,
        call=size.call(model, quick=False),
        ladder=default_ladder(*size.tile_rows(quick=False), wide=True),
        num_measured=1,
    )
    _make_folder(output)
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    report = check_estimator(pipe, settings, modes=modes, num_items=items, num_plans=plans, folder=output / "runs")
    write_json(output / "estimator.json", report)
    if json_output:
        print(json.dumps(report))
    else:
        _print_estimator(report)


def _prompts(model: str, path: Path | None, count: int) -> list[str]:
    if path is None:
        if model != "tiny":
            raise ConfigError(f"prompts: model {model!r} needs a file with {count} prompts, one a line")
        from fastdit_pipelines.tiny.suite import draw_samples

        # A longer list begins with the shorter one; equal prompts would be seen in calibration and held out.
        drawn = list(dict.fromkeys(sample.prompt for sample in draw_samples(4 * count + 20, seed=7)))
        return drawn[:count]
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts {str(path)!r} cannot be read: {error}") from error
    found = list(dict.fromkeys(line for line in lines if line))
    if len(found) < count:
        raise ConfigError(f"prompts {str(path)!r} has {len(found)} different prompts: accepted is {count} or more")
    return found[:count]


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output {str(output)!r} cannot be written: {error.strerror}") from error


def _print_figures(report: dict[str, Any]) -> None:
    table = Table(
        "promise", "held-out PSNR", "within 1 dB", "density", "best uniform", "its density", "saved", "search"
    )
    for row in report["promises"]:
        held, best = row["held_out"], row.get("uniform")
        named = "" if best is None else f"{best['method']}, {best['dense_steps']:.0%} dense, {best['setting']:.3g}"
        table.add_row(
            f"{row['promise']:g} dB",
            f"{held['psnr']:.2f} ({held['prompts']})",
            f"{held['share_above']:.0%}",
            f"{held['density']:.3f}",
            named,
            "" if best is None else f"{best['density']:.3f}",
            f"{row['saving']:.1%}" if "saving" in row else "",
            f"{row['search']['dense_runs']:.1f} dense runs",
        )
    console = Console()
    console.print(table)
    console.print("Density: attention scores over the whole run, dense steps included, over those of dense attention.")
    for row in report["promises"]:
        missed = [name for name, met in row["meets"].items() if not met]
        console.print(f"{row['promise']:g} dB: {'misses ' + ', '.join(missed) if missed else 'meets all marks'}")


def _print_estimator(report: dict[str, Any]) -> None:
    table = Table("estimate", "rank correlation", "within phases", title=f"{len(report['items'])} heads run alone")
    for label, found in report["rank_correlation"].items():
        table.add_row(label, *("" if value is None else f"{value:.3f}" for value in found.values()))
    console = Console()
    console.print(table)
    for name, factor in (("heads", report["factor"]), ("whole plans", report["plans"]["factor"])):
        if factor:
            console.print(
                f"{name}: true over predicted error {factor['median_db']:+.1f} dB (median), the middle 80 % within "
                f"{factor['spread_db']:.1f} dB"
            )
