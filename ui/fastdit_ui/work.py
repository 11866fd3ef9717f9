"""What the worker does: one video, or the same video dense and sparse; both leave a run in the library."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastdit
from fastdit.errors import ConfigError
from fastdit.statistics import RunStatistics
from fastdit_ui.baselines import Baseline
from fastdit_ui.engine import Frames
from fastdit_ui.jobs import Job
from fastdit_ui.request import RunRequest
from fastdit_ui.run_report import write_report
from fastdit_ui.snippets import as_command
from fastdit_ui.state import AppState


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Args:
        name: Its name in the library.
        folder: Its folder.
        report: Contents of its `report.json`.
    """

    name: str
    folder: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class _SparseRun:
    frames: Frames
    seconds: float
    core_share: float | None
    density: float
    summary: str
    density_by_step: list[float]


def run_generate(state: AppState, request: RunRequest, job: Job) -> RunResult:
    """One video; `video.mp4` and `report.json`."""
    pipe = _load(state, request, job)
    if request.config is None:
        frames, seconds, _ = _run(state, pipe, request, job, "Dense run")
        figures: dict[str, Any] = {"density": 1.0, "summary": "stock pipeline, dense", "density_by_step": None}
    else:
        done = _run_sparse(state, pipe, request, job)
        frames, seconds = done.frames, done.seconds
        figures = {"density": done.density, "summary": done.summary, "density_by_step": done.density_by_step}
    job.report(0, 0, "Writing the video")
    with state.runs.new() as (name, folder):
        state.engine.write_video(frames, folder / "video.mp4", request.fps)
        figures |= {"seconds": seconds, "command": as_command(request, compare=False)}
        report = write_report(folder, request, figures)
    return RunResult(name, state.runs.root / name, report)


def run_compare(state: AppState, request: RunRequest, job: Job) -> RunResult:
    """The same video dense and sparse; `dense.mp4`, `sparse.mp4`, `side_by_side.mp4`, `compare.png`, `report.json`."""
    if request.config is None:
        raise ConfigError("method='dense' in a comparison: choose a sparse method to compare with dense")
    pipe = _load(state, request, job)
    # A pipeline that cannot be enabled is refused before the dense run, not after it.
    fastdit.enable(pipe, request.config).close()
    key = request.baseline_key()
    baseline = state.baselines.get(key)
    reused = baseline is not None
    if baseline is None:
        job.report(0, 0, "Warming up")
        state.engine.warm_up(pipe, request.call, request.image)
        baseline = Baseline(*_run(state, pipe, request, job, "Dense run"))
        state.baselines.put(key, baseline)
    done = _run_sparse(state, pipe, request, job)
    job.report(0, 0, "Comparing the videos")
    with state.runs.new() as (name, folder):
        report = _write_comparison(state, request, baseline, done, reused, folder)
    return RunResult(name, state.runs.root / name, report)


def _load(state: AppState, request: RunRequest, job: Job) -> Any:
    if state.pipelines.model != request.model:
        job.report(0, 0, f"Loading {request.model}")
    return state.pipelines.get(request.model)


def _run(state: AppState, pipe: Any, request: RunRequest, job: Job, label: str) -> tuple[Frames, float, float | None]:
    """Frames and wall time of one run, and how much of a core it had, for pipelines on the CPU."""
    total = int(request.call["num_inference_steps"])
    job.report(0, total, label)
    start, own_start = time.perf_counter(), time.thread_time()
    frames = state.engine.generate(
        pipe, request.call, image=request.image, on_step=lambda step, steps: job.report(step, steps, label)
    )
    seconds, own = time.perf_counter() - start, time.thread_time() - own_start
    on_cpu = getattr(getattr(pipe, "device", None), "type", None) == "cpu"
    return frames, seconds, own / seconds if on_cpu else None


def _run_sparse(state: AppState, pipe: Any, request: RunRequest, job: Job) -> _SparseRun:
    with fastdit.enable(pipe, request.config) as session:
        frames, seconds, core_share = _run(state, pipe, request, job, "Sparse run")
        density = session.stats.density()
        assert density is not None, "a run that returned has made attention calls"
        return _SparseRun(frames, seconds, core_share, density, session.summary(), density_by_step(session.stats))


def density_by_step(stats: RunStatistics) -> list[float]:
    """Scores computed / scores of dense attention in each step of a run, over all transformers, layers and heads."""
    sums: dict[int, tuple[int, int]] = {}
    for record in stats.records.values():
        done, total = sums.get(record.step, (0, 0))
        sums[record.step] = (done + record.executed_pairs(), total + record.dense_pairs)
    return [done / total for _, (done, total) in sorted(sums.items())]


def _write_comparison(
    state: AppState, request: RunRequest, baseline: Baseline, done: _SparseRun, reused: bool, folder: Path
) -> dict[str, Any]:
    from fastdit.fidelity import CONVENTION, measure_fidelity, psnr_per_frame
    from fastdit_eval.comparison_sheet import draw_comparison
    from fastdit_eval.difference_video import side_by_side

    fidelity = measure_fidelity(baseline.frames, done.frames)
    joined, top = side_by_side(baseline.frames, done.frames)
    for name, frames in (("dense", baseline.frames), ("sparse", done.frames), ("side_by_side", joined)):
        state.engine.write_video(frames, folder / f"{name}.mp4", request.fps)
    speedup = baseline.seconds / done.seconds
    draw_comparison(
        baseline.frames,
        done.frames,
        f"{request.call['prompt']}\n{request.method}: density {done.density:.2f} over the run, "
        f"speed-up {speedup:.2f}x, PSNR {fidelity.psnr:.1f} dB",
        folder / "compare.png",
    )
    figures = {
        "dense_seconds": baseline.seconds,
        "sparse_seconds": done.seconds,
        "speedup": speedup,
        "speedup_of_each_pair": [speedup],
        "dense_run_reused": reused,
        "dense_core_share": baseline.core_share,
        "sparse_core_share": done.core_share,
        "density": done.density,
        "psnr": fidelity.psnr,
        "ssim": fidelity.ssim,
        "fidelity_convention": CONVENTION,
        "psnr_by_frame": psnr_per_frame(baseline.frames, done.frames),
        "largest_difference": top,
        "density_by_step": done.density_by_step,
        "summary": done.summary,
        "command": as_command(request, compare=True),
    }
    return write_report(folder, request, figures)
