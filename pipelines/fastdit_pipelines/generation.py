"""Running a pipeline: one video, or the same video dense and sparse side by side in time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils import export_to_video

import fastdit
from fastdit.errors import ConfigError
from fastdit.statistics import RunStatistics
from fastdit.whole_files import whole_file

Frames = npt.NDArray[np.float32]
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Call arguments of a text-to-video pipeline; `None` leaves the pipeline's own default.

    Args:
        prompt: What to show.
        negative_prompt: What to avoid.
        height: Pixels.
        width: Pixels.
        num_frames: Frames.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
        max_sequence_length: Padded length of the prompt.
        seed: Seed of the initial noise.
    """

    prompt: str
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    max_sequence_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: accepted is a positive integer")
        if not self.prompt.strip():
            raise ConfigError("prompt is empty: say what the video should show")

    def call_arguments(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline, without the seed and without unset ones."""
        names = [field.name for field in fields(self) if field.name != "seed"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def steps_of(pipe: Any, settings: GenerationSettings) -> int | None:
    """Denoising steps that a call will take: the setting, else the pipeline's default."""
    if settings.num_inference_steps is not None:
        return settings.num_inference_steps
    default = inspect.signature(pipe.__call__).parameters.get("num_inference_steps")
    return None if default is None else default.default


def generate(
    pipe: Any,
    settings: GenerationSettings,
    label: str | None = "generate",
    *,
    image: Any = None,
    on_step: OnStep | None = None,
) -> Frames:
    """Run the pipeline once, with Diffusers' progress bar.

    Args:
        pipe: The pipeline.
        settings: The call.
        label: Of the progress bar; `None` leaves the bar as the pipeline has it.
        image: First frame, as a PIL image, for image-to-video pipelines.
        on_step: Called after each denoising step with the steps done and their number; what it raises ends the run.

    Returns:
        Frames `[F, H, W, 3]`, float32 in [0, 1], before any video encoding.

    Raises:
        ConfigError: The pipeline refuses an argument, takes no image, or cannot report its steps.
    """
    if label is not None:
        pipe.set_progress_bar_config(desc=label)
    arguments = {**settings.call_arguments(), **_image_argument(pipe, image), "output_type": "np"}
    if on_step is not None:
        arguments["callback_on_step_end"] = _step_callback(pipe, on_step)
    output = _call(pipe, arguments, settings.seed)
    frames: Frames = np.asarray(output.frames[0], dtype=np.float32)
    return frames


def _image_argument(pipe: Any, image: Any) -> dict[str, Any]:
    parameter = inspect.signature(pipe.__call__).parameters.get("image")
    if image is not None and parameter is None:
        raise ConfigError(f"image: {type(pipe).__name__} takes none, it makes videos from text alone; leave it out")
    if image is None and parameter is not None and parameter.default is inspect.Parameter.empty:
        raise ConfigError(f"image: {type(pipe).__name__} makes videos from an image; give one")
    return {} if image is None else {"image": image}


def _step_callback(pipe: Any, on_step: OnStep) -> Callable[..., dict[str, Any]]:
    """What Diffusers calls after each step."""
    if "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        raise ConfigError(f"on_step: {type(pipe).__name__} has no callback_on_step_end, it cannot report its steps")

    def callback(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, running.num_timesteps)
        return tensors

    return callback


def _call(pipe: Any, arguments: dict[str, Any], seed: int) -> Any:
    """Call the pipeline; what it refuses itself (sizes, unknown arguments) becomes a `ConfigError`."""
    try:
        return pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed))
    except (ValueError, TypeError) as error:
        if isinstance(error, fastdit.FastDitError):
            raise
        raise ConfigError(f"{type(pipe).__name__} refuses the call: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Comparison:
    """The same video dense and sparse.

    Args:
        dense_frames: `[F, H, W, 3]` in [0, 1].
        sparse_frames: Likewise.
        dense_seconds: Wall time of each dense run.
        sparse_seconds: Wall time of each sparse run, paired with `dense_seconds`.
        density: Attention density over a whole sparse run, its dense calls included.
        summary: `session.summary()` of the last sparse run.
        stats: Statistics of the last sparse run.
    """

    dense_frames: Frames
    sparse_frames: Frames
    dense_seconds: tuple[float, ...]
    sparse_seconds: tuple[float, ...]
    density: float
    summary: str
    stats: RunStatistics


def compare(
    pipe: Any,
    settings: GenerationSettings,
    config: fastdit.AttentionConfig | fastdit.Plan,
    repeats: int = 1,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
    guard: float | None = None,
) -> Comparison:
    """Run dense and sparse in turn, in one process, from one seed.

    Args:
        pipe: A pipeline that is not enabled.
        settings: The call.
        config: The sparse method.
        repeats: Pairs of runs; odd pairs start dense, even ones sparse, so that drift of the machine cancels.
        around: Given "dense" or "sparse", a context that is open during each run and not timed, e.g. to time stages.
        guard: As `fastdit.enable` takes it.
    """
    frames: dict[str, Frames] = {}
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    session: list[fastdit.Session] = []

    def dense(label: str) -> Frames:
        return generate(pipe, settings, label)

    def sparse(label: str) -> Frames:
        with fastdit.enable(pipe, config, guard=guard) as opened:
            session[:] = [opened]
            return generate(pipe, settings, label)

    runs: dict[str, Callable[[str], Frames]] = {"dense": dense, "sparse": sparse}
    # A pipeline that cannot be enabled is refused before the first dense run, not after it.
    fastdit.enable(pipe, config, guard=guard).close()
    warm_up(pipe, settings)
    for repeat in range(repeats):
        for kind in ("dense", "sparse") if repeat % 2 == 0 else ("sparse", "dense"):
            with around(kind):
                start = time.perf_counter()
                frames[kind] = runs[kind](f"{kind} {repeat + 1}/{repeats}")
                seconds[kind].append(time.perf_counter() - start)
    density = session[0].stats.density()
    assert density is not None, "a run that returned has made attention calls"
    return Comparison(
        frames["dense"],
        frames["sparse"],
        tuple(seconds["dense"]),
        tuple(seconds["sparse"]),
        density,
        session[0].summary(),
        session[0].stats,
    )


def warm_up(pipe: Any, settings: GenerationSettings, image: Any = None) -> None:
    """One step, so that the first timed run does not pay for allocation and lazy imports; arguments as `generate`."""
    arguments = {**settings.call_arguments(), "num_inference_steps": 1, "output_type": "latent"}
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        _call(pipe, {**arguments, **_image_argument(pipe, image)}, seed=0)
    finally:
        pipe.set_progress_bar_config(**{"disable": False, **before})


def write_video(frames: Frames, path: Path, fps: int) -> None:
    """Encode frames as MP4, in one step: a failure leaves no half-written file.

    Args:
        frames: `[F, H, W, 3]` in [0, 1].
        path: Target, ending in `.mp4`.
        fps: Frames per second.
    """
    with whole_file(path) as partial:
        export_to_video(list(frames), str(partial), fps=fps, quality=8, macro_block_size=2)
