"""`fastdit generate`: a video from a prompt, dense or sparse, or both compared."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

import fastdit
from fastdit.cli.output_folder import staged_output
from fastdit.cli.sparse_options import SparseOptions
from fastdit.config import METHODS, AttentionConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.validation import check_choice, check_count

if TYPE_CHECKING:
    from fastdit_pipelines.generation import Comparison, GenerationSettings

DEFAULT_SPARSE = SparseOptions()


@Parameter(name="*", group="Video")
@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Arguments of the pipeline call; unset ones take the model's defaults.

    Args:
        negative_prompt: What to avoid.
        height: Pixels.
        width: Pixels.
        num_frames: Frames.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
        seed: Seed of the initial noise.
        fps: Frames per second of the written video.
    """

    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    fps: int | None = None


def generate(
    *,
    prompt: str,
    output: Path,
    model: str = "tiny",
    method: str = "adaptive",
    compare: bool = False,
    repeats: int = 1,
    video: VideoOptions = VideoOptions(),
    sparse: SparseOptions = DEFAULT_SPARSE,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Generate a video; with --compare the same video dense and sparse, with figures and a picture.

    Writes video.mp4 and report.json, or dense.mp4, sparse.mp4, compare.png and report.json.

    Args:
        prompt: What to show.
        output: Folder for the results.
        model: "tiny", a Diffusers folder, or a Hub id.
        method: "adaptive", "pyramid", "static" or "cached", or "dense" for the stock pipeline.
        compare: Run dense and sparse from one seed and compare them.
        repeats: Pairs of timed runs with --compare; the median counts.
        video: Arguments of the pipeline call.
        sparse: Settings of the method.
        json_output: Print the report as JSON on standard output.
    """
    check_choice("method", method, ("dense", *METHODS))
    check_count("repeats", repeats, 1)
    if compare and method == "dense":
        raise ConfigError("method='dense' with --compare: choose a sparse method to compare with dense")
    from fastdit_pipelines.loading import load_pipeline, method_defaults

    config = None if method == "dense" else sparse.build(method, method_defaults(model, method))
    settings, fps = video_settings(model, prompt, video)

    with staged_output(output) as folder:
        pipe = load_pipeline(model)
        if config is not None and compare:
            report = _compare(pipe, settings, config, repeats, fps, folder)
        else:
            report = _single(pipe, settings, config, fps, folder)
        report = {
            "model": model,
            "method": method,
            **report,
            "settings": settings.call_arguments(),
            "config": None if config is None else config.to_dict(),
            "environment": describe_environment(),
            "command": " ".join(["fastdit", *sys.argv[1:]]),
        }
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if json_output:
        print(json.dumps(report))
    else:
        _print_report(report, output)


def video_settings(model: str, prompt: str, video: VideoOptions) -> tuple[GenerationSettings, int]:
    """The call and the frame rate: what was given, over the model's defaults."""
    from fastdit_pipelines.generation import GenerationSettings

    call, fps = call_arguments(model, dataclasses.asdict(video))
    return GenerationSettings(prompt=prompt, **call), fps


def call_arguments(model: str, given: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Arguments of the pipeline call and the frame rate: what is not `None` in `given`, over the model's defaults."""
    from fastdit_pipelines.loading import model_defaults

    merged = {"fps": 16, **model_defaults(model), **{name: value for name, value in given.items() if value is not None}}
    fps: int = merged.pop("fps")
    check_count("fps", fps, 1)
    return merged, fps


def _single(
    pipe: Any, settings: GenerationSettings, config: AttentionConfig | None, fps: int, folder: Path
) -> dict[str, Any]:
    from fastdit_pipelines.generation import generate as run
    from fastdit_pipelines.generation import steps_of, write_video

    session = None if config is None else fastdit.enable(pipe, config)
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
    pipe: Any, settings: GenerationSettings, config: AttentionConfig, repeats: int, fps: int, folder: Path
) -> dict[str, Any]:
    from fastdit_eval.comparison_sheet import draw_comparison
    from fastdit_eval.fidelity import CONVENTION, measure_fidelity
    from fastdit_pipelines.generation import compare, steps_of, write_video

    result = compare(pipe, settings, config, repeats)
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
        f"{report['speedup']:.2f}x faster, PSNR {fidelity.psnr:.1f} dB"
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
