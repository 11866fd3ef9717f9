"""`fastdit generate`: a video from a prompt, dense or sparse, or both compared."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

import fastdit
from fastdit.cli.call_options import DEFAULT_VIDEO, VideoOptions
from fastdit.cli.output_folder import staged_output
from fastdit.cli.sparse_options import DEFAULT_SPARSE, SparseOptions, check_method
from fastdit.config import AdaptiveConfig, AttentionConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.validation import check_count, check_fraction

if TYPE_CHECKING:
    from fastdit_pipelines.generation import Comparison, GenerationSettings


def generate(
    *,
    prompt: str | None = None,
    prompts: Path | None = None,
    output: Path,
    model: str = "tiny",
    method: str | None = None,
    compare: bool = False,
    repeats: int = 1,
    guard: float | None = None,
    video: VideoOptions = DEFAULT_VIDEO,
    sparse: SparseOptions = DEFAULT_SPARSE,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Generate a video; with --compare the same video dense and sparse, with figures and a picture.

    Writes video.mp4 and report.json, or dense.mp4, sparse.mp4, compare.png and report.json. With --prompts it writes
    0000.mp4, 0000.json and so on, goes on with a stopped run, and shares the list out under accelerate launch.

    Args:
        prompt: What to show.
        prompts: Text file with one prompt a line, instead of --prompt.
        output: Folder for the results.
        model: "tiny", a Diffusers folder, or a Hub id.
        method: "adaptive" (the default), "pyramid", "static" or "cached", or "dense" for the stock pipeline.
        compare: Run dense and sparse from one seed and compare them.
        repeats: Pairs of timed runs with --compare; the median counts.
        guard: With --plan, the share of the recall noted in the plan under which a head is dense for the rest of a run.
        video: Arguments of the pipeline call.
        sparse: Settings of the method.
        json_output: Print the report as JSON on standard output.
    """
    method = sparse.choose_method(method, AdaptiveConfig.method)
    check_method(method, sparse, "dense")
    check_count("repeats", repeats, 1)
    if guard is not None:
        check_fraction("guard", guard)
        if sparse.plan is None:
            raise ConfigError(f"guard={guard:g} without --plan: heads are held to the recall that a plan notes")
    if compare and method == "dense":
        raise ConfigError("method='dense' with --compare: choose a sparse method to compare with dense")
    if (prompt is None) == (prompts is None):
        raise ConfigError("prompt or prompts: give one of --prompt and --prompts")
    from fastdit_pipelines.bundled_models import method_defaults
    from fastdit_pipelines.loading import load_pipeline

    config = None if method == "dense" else sparse.build(method, method_defaults(model, method))
    if prompt is None:
        assert prompts is not None, "one of the two is given"
        if compare or repeats != 1:
            raise ConfigError("prompts with --compare or --repeats: compare one --prompt at a time")
        _generate_list(model, prompts, config, output, video, guard, json_output)
        return
    settings, fps = video_settings(model, prompt, video)
    with staged_output(output) as folder:
        pipe = load_pipeline(model)
        if config is not None and compare:
            report = _compare(pipe, settings, config, repeats, fps, guard, folder)
        else:
            report = _single(pipe, settings, config, fps, guard, folder)
        report = {
            "model": model,
            "method": method,
            **report,
            "settings": settings.call_arguments(),
            "config": None if config is None else config.to_dict(),
            "guard": guard,
            "environment": describe_environment(),
            "command": " ".join(["fastdit", *sys.argv[1:]]),
        }
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if json_output:
        print(json.dumps(report))
    else:
        _print_report(report, output)


def _generate_list(
    model: str,
    prompts: Path,
    config: AttentionConfig | None,
    output: Path,
    video: VideoOptions,
    guard: float | None,
    json_output: bool,
) -> None:
    from fastdit_pipelines.prompt_list import read_prompts, run_list

    listed = read_prompts(prompts)
    settings, fps = video_settings(model, listed[0], video)
    done = run_list(model, listed, settings, config, fps, output, guard)
    if json_output:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(
        f"process {done.process_index + 1} of {done.num_processes}: made {len(done.made)} videos, "
        f"{len(done.skipped)} were there; {output}/"
    )


def video_settings(model: str, prompt: str, video: VideoOptions) -> tuple[GenerationSettings, int]:
    """The call and the frame rate: what was given, over the model's defaults."""
    from fastdit_pipelines.generation import GenerationSettings

    call, fps = call_arguments(model, dataclasses.asdict(video))
    return GenerationSettings(prompt=prompt, **call), fps


def call_arguments(model: str, given: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Arguments of the pipeline call and the frame rate: what is not `None` in `given`, over the model's defaults."""
    from fastdit_pipelines.bundled_models import model_defaults

    merged = {"fps": 16, **model_defaults(model), **{name: value for name, value in given.items() if value is not None}}
    fps: int = merged.pop("fps")
    check_count("fps", fps, 1)
    return merged, fps


def _single(
    pipe: Any,
    settings: GenerationSettings,
    config: AttentionConfig | None,
    fps: int,
    guard: float | None,
    folder: Path,
) -> dict[str, Any]:
    from fastdit_pipelines.generation import generate as run
    from fastdit_pipelines.generation import steps_of, write_video

    session = None if config is None else fastdit.enable(pipe, config, guard=guard)
    start = time.perf_counter()
    frames = run(pipe, settings)
    seconds = time.perf_counter() - start
    write_video(frames, folder / "video.mp4", fps)
    return {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "num_inference_steps": steps_of(pipe, settings),
        "seconds": seconds,
        "density": 1.0 if session is None else session.stats.density(),
        "summary": "stock pipeline, dense" if session is None else session.summary(),
    }


def _compare(
    pipe: Any,
    settings: GenerationSettings,
    config: AttentionConfig,
    repeats: int,
    fps: int,
    guard: float | None,
    folder: Path,
) -> dict[str, Any]:
    from fastdit.fidelity import CONVENTION, measure_fidelity
    from fastdit_eval.comparison_sheet import draw_comparison
    from fastdit_pipelines.generation import compare, steps_of, write_video

    result = compare(pipe, settings, config, repeats, guard=guard)
    fidelity = measure_fidelity(result.dense_frames, result.sparse_frames)
    write_video(result.dense_frames, folder / "dense.mp4", fps)
    write_video(result.sparse_frames, folder / "sparse.mp4", fps)
    report = {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "num_inference_steps": steps_of(pipe, settings),
        **_speed(result),
        "density": result.density,
        "psnr": fidelity.psnr,
        "ssim": fidelity.ssim,
        "fidelity_convention": CONVENTION,
        "summary": result.summary,
    }
    title = (
        f"{settings.prompt}\n{config.method}: density {result.density:.2f} over the run, "
        f"speed-up {report['speedup']:.2f}x, PSNR {fidelity.psnr:.1f} dB"
    )
    draw_comparison(result.dense_frames, result.sparse_frames, title, folder / "compare.png")
    return report


def _speed(result: Comparison) -> dict[str, Any]:
    """Medians over the pairs; the speed-up is the median of the ratios of each pair."""
    ratios = [a / b for a, b in zip(result.dense_seconds, result.sparse_seconds, strict=True)]
    return {
        "dense_seconds": statistics.median(result.dense_seconds),
        "sparse_seconds": statistics.median(result.sparse_seconds),
        "speedup": statistics.median(ratios),
        "speedup_of_each_pair": ratios,
    }


def _print_report(report: dict[str, Any], output: Path) -> None:
    console = Console()
    if "speedup" in report:
        pairs = len(report["speedup_of_each_pair"])
        table = Table("", "seconds", "density, whole run", title=f"{report['model']}: {report['prompt']}")
        table.add_row("dense", f"{report['dense_seconds']:.2f}", "1.000")
        table.add_row(report["method"], f"{report['sparse_seconds']:.2f}", f"{report['density']:.3f}")
        console.print(table)
        ssim = "not defined at this size" if report["ssim"] is None else f"{report['ssim']:.4f}"
        console.print(f"speed-up {report['speedup']:.2f}x end to end (median of {pairs} pairs of runs, one process)")
        console.print(f"PSNR {report['psnr']:.2f} dB, SSIM {ssim} against dense, on the raw frames")
    console.print(report["summary"], highlight=False)
    console.print(f"written to {output}/", highlight=False)
