"""`fastdit eval speed`: dense and sparse runs of a model timed in turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.call_options import DEFAULT_VIDEO, VideoOptions
from fastdit.cli.generate import video_settings
from fastdit.cli.sparse_options import DEFAULT_SPARSE, SparseOptions
from fastdit.config import METHODS, AdaptiveConfig
from fastdit.environment import describe_environment
from fastdit.validation import check_choice, check_count
from fastdit.whole_files import whole_file, write_json


def speed(
    *,
    prompt: str = "a red circle moving right on a dark background",
    model: str = "tiny",
    method: str | None = None,
    repeats: int = 3,
    output: Path | None = None,
    name: str | None = None,
    video: VideoOptions = DEFAULT_VIDEO,
    sparse: SparseOptions = DEFAULT_SPARSE,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Time dense and sparse runs in turn in one process, after a warm-up: end to end and by stage.

    One more pair, not counted, times the self-attention layers and, inside sparse ones, the selection of tiles.

    Args:
        prompt: What to show.
        model: "tiny", a Diffusers folder, or a Hub id.
        method: "adaptive" (the default), "pyramid", "static" or "cached".
        repeats: Timed pairs of runs; medians count.
        output: Run folder; results go to results/speed-NAME.json, .png and -attention.png.
        name: Name of the result; default the method.
        video: Arguments of the pipeline call.
        sparse: Settings of the method.
        json_output: Print the report as JSON on standard output.
    """
    method = sparse.choose_method(method, AdaptiveConfig.method)
    check_choice("method", method, tuple(METHODS))
    check_count("repeats", repeats, 1)
    from fastdit.fidelity import CONVENTION, measure_fidelity
    from fastdit_eval.result_files import result_path
    from fastdit_eval.run_plots import plot_stages
    from fastdit_eval.speed_run import measure_speed
    from fastdit_pipelines.bundled_models import method_defaults
    from fastdit_pipelines.generation import compare, steps_of
    from fastdit_pipelines.loading import load_pipeline

    store = None if output is None else result_path(output, "speed", name or method)
    config = sparse.build(method, method_defaults(model, method))
    settings, _ = video_settings(model, prompt, video)
    pipe = load_pipeline(model)
    report, result = measure_speed(pipe, lambda around, pairs: compare(pipe, settings, config, pairs, around), repeats)
    fidelity = measure_fidelity(result.dense_frames, result.sparse_frames)
    report |= {
        "model": model,
        "method": method,
        "prompt": prompt,
        "num_inference_steps": steps_of(pipe, settings),
        "psnr": fidelity.psnr,
        "ssim": fidelity.ssim,
        "fidelity_convention": CONVENTION,
        "settings": settings.call_arguments(),
        "config": config.to_dict(),
        "environment": describe_environment(),
        "command": " ".join(["fastdit", *sys.argv[1:]]),
    }
    if store is not None:
        write_json(store, report)
        title = f"{model}, {method}: seconds"
        parts = plot_stages(report["attention_seconds"], f"{title} of the self-attention layers, in a pair of its own")
        pictures = {".png": plot_stages(report["stages"], f"{title} by stage"), "-attention.png": parts}
        for ending, picture in pictures.items():
            with whole_file(store.with_name(store.stem + ending)) as partial:
                partial.write_bytes(picture)
    if json_output:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_speed(report)


def _print_speed(report: dict[str, Any]) -> None:
    console = Console()
    stages = list(report["stages"]["dense"])
    title = f"{report['model']}, {report['method']}: median seconds of {report['repeats']} pair(s)"
    shares = {"attention_share": "attention layers", "selection_share": "selection", "gather_share": "gather"}
    table = Table("", "whole call", "range", *stages, *shares.values(), title=title)
    for kind, row in report["seconds"].items():
        cells = [f"{row['median']:.2f}", f"{row['min']:.2f}-{row['max']:.2f}"]
        cells += [f"{report['stages'][kind][stage]:.2f}" for stage in stages]
        table.add_row(kind, *cells, *(f"{report[share][kind]:.1%}" for share in shares))
    console.print(table)
    console.print(
        f"speed-up {report['speedup']:.2f}x end to end, density {report['density']:.3f} over the run, dense steps "
        f"included; PSNR {report['psnr']:.2f} dB to dense"
    )
    console.print(
        "Attention layers (projections included), selection of tiles, gather of tokens: shares of denoising, measured "
        "in a pair of its own."
    )
    memory = ", ".join(f"{kind} {value / 2**20:.0f} MiB" for kind, value in report["peak_memory_bytes"].items())
    console.print(f"peak memory: {memory}", highlight=False)
