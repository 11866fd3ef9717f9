"""The run behind the tab Look inside: a generation that is recorded, kept as a run of the library."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdit import AdaptiveConfig, Schedule
from fastdit.adapters import find_adapter
from fastdit.api import find_transformers
from fastdit.errors import ConfigError, InvalidInputError
from fastdit.plan_config import PlanConfig
from fastdit.recorded_run import QUARTERS, RecordedRun
from fastdit.recorder import AttentionRecorder
from fastdit_ui.frame_sheet import Pixels, latent_frames
from fastdit_ui.jobs import Job
from fastdit_ui.request import RunRequest
from fastdit_ui.run_report import write_report
from fastdit_ui.runs import RunRecord, RunStore
from fastdit_ui.state import AppState

FOLDER, FRAMES = "recorded", "frames.npz"
KIND = "inside"
# Queries, keys and masks of one run, in memory and on disk.
MAX_BYTES = 1 << 30
# Steps that are recorded if none are named.
DEFAULT_STEPS = 4


def parse_numbers(text: str, name: str) -> tuple[int, ...]:
    """Numbers in a text such as `0, 3 7`, rising.

    Raises:
        ConfigError: There is something else in it.
    """
    words = str(text or "").replace(",", " ").split()
    if not all(word.isdecimal() and len(word) < 6 for word in words) or len(words) > 100:
        raise ConfigError(f"{name}={str(text)[:80]!r}: accepted are numbers from 0 on, e.g. 0, 3, 7, or nothing")
    return tuple(sorted({int(word) for word in words}))


def record_run(state: AppState, request: RunRequest, layers: Sequence[int], steps: Sequence[int], job: Job) -> str:
    """Generate and record; what the job returns is the name of the run.

    Args:
        state: The server.
        request: The generation.
        layers: Layers whose calls are kept; empty for the first, middle and last.
        steps: Denoising steps whose calls are kept; empty for some that are evenly spread.
        job: Told of each step.

    Raises:
        ConfigError: A layer or step does not exist.
    """
    job.report(0, 0, f"Loading {request.model}")
    pipe = state.pipelines.get(request.model)
    total = int(request.call["num_inference_steps"])
    config = request.config or AdaptiveConfig(schedule=Schedule(dense_steps=1.0))
    chosen = choose(steps, total, DEFAULT_STEPS, "steps"), choose(layers, count_layers(pipe), 3, "layers")
    label = "Recorded run"
    job.report(0, total, label)
    start = time.perf_counter()
    with AttentionRecorder(pipe, config, *chosen, MAX_BYTES) as recorder:
        frames = state.engine.generate(
            pipe, request.call, image=request.image, on_step=lambda step, of: job.report(step, of, label)
        )
    seconds = time.perf_counter() - start
    job.report(0, 0, "Writing the run")
    with state.runs.new() as (name, folder):
        recorded = RecordedRun.of(recorder, phase_ends(request.config))
        recorded.save(folder / FOLDER)
        grid = next((one.grid for one in recorder.calls.values()), None)
        shown = latent_frames(frames, len(frames) if grid is None else grid.frames)
        np.savez_compressed(folder / FOLDER / FRAMES, allow_pickle=False, frames=shown)
        state.engine.write_video(frames, folder / "video.mp4", request.fps)
        write_report(folder, request, describe(recorder, request.config is None, seconds))
    return name


def describe(recorder: AttentionRecorder, dense: bool, seconds: float) -> dict[str, Any]:
    """What a recorded run tells in its report; `kind` tells it from others."""
    session = recorder.session
    return {
        "kind": KIND,
        # Recording takes time of its own: no figure of speed.
        "seconds_with_recording": seconds,
        "density": session.stats.density(),
        "summary": "stock attention, dense" if dense else session.summary(),
    }


def choose(given: Sequence[int], total: int, number: int, name: str) -> tuple[int, ...]:
    """What was given, or `number` of `total`, evenly spread with the first and the last.

    Raises:
        ConfigError: One does not exist.
    """
    if given:
        if max(given) >= total:
            raise ConfigError(f"{name}={list(given)}: accepted are 0 to {total - 1}")
        return tuple(given)
    return tuple(sorted(set(np.linspace(0, total - 1, min(number, total)).round().astype(int).tolist())))


def count_layers(pipe: Any) -> int:
    """Video self-attention layers of the largest transformer of a pipeline."""
    return max(len(find_adapter(module).sites(module)) for _, module in find_transformers(pipe))


def phase_ends(config: Any) -> tuple[float, ...]:
    """Ends of the phases of a plan; quarters for other methods."""
    plan = config.plan if isinstance(config, PlanConfig) else None
    return QUARTERS if plan is None else tuple(phase.until for phase in plan.phases)


def recorded_names(runs: RunStore) -> list[str]:
    """Runs of the library that were recorded, newest first."""
    return [one.name for one in runs.list() if one.report.get("kind") == KIND]


def open_run(runs: RunStore, name: str) -> tuple[RunRecord, RecordedRun]:
    """A recorded run of the library.

    Raises:
        InvalidInputError: There is none of this name, or it is damaged.
    """
    record = runs.get(name)
    folder = record.folder / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        raise InvalidInputError(f"run {name} was not recorded: record one in the tab Look inside")
    return record, RecordedRun.load(folder)


def open_frames(record: RunRecord) -> Pixels:
    """The frames of a recorded run, one for each latent frame: uint8 `[T, H, W, 3]`.

    Raises:
        InvalidInputError: They are missing or damaged.
    """
    try:
        with np.load(record.folder / FOLDER / FRAMES, allow_pickle=False) as data:
            frames: Pixels = data["frames"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"frames of run {record.name} are damaged: {error}") from error
    if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[3] != 3:
        raise InvalidInputError(f"frames of run {record.name} are damaged: {frames.dtype} {frames.shape}")
    return frames
