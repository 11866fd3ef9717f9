"""Running a pipeline: one video, or the same video dense and sparse side by side in time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils import export_to_video

import fastdit
from fastdit.errors import ConfigError, OutputError

Frames = npt.NDArray[np.float32]


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


def generate(pipe: Any, settings: GenerationSettings, label: str = "generate") -> Frames:
    """Run the pipeline once, with Diffusers' progress bar.

    Returns:
        Frames `[F, H, W, 3]`, float32 in [0, 1], before any video encoding.
    """
    pipe.set_progress_bar_config(desc=label)
    output = _call(pipe, {**settings.call_arguments(), "output_type": "np"}, settings.seed)
    frames: Frames = np.asarray(output.frames[0], dtype=np.float32)
    return frames


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
    """

    dense_frames: Frames
    sparse_frames: Frames
    dense_seconds: tuple[float, ...]
    sparse_seconds: tuple[float, ...]
    density: float
    summary: str


def compare(pipe: Any, settings: GenerationSettings, config: fastdit.AttentionConfig, repeats: int = 1) -> Comparison:
    """Run dense and sparse in turn, in one process, from one seed.

    Args:
        pipe: A pipeline that is not enabled.
        settings: The call.
        config: The sparse method.
        repeats: Pairs of runs; odd pairs start dense, even ones sparse, so that drift of the machine cancels.
    """
    frames: dict[str, Frames] = {}
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    session: list[fastdit.Session] = []

    def dense(label: str) -> Frames:
        return generate(pipe, settings, label)

    def sparse(label: str) -> Frames:
        with fastdit.enable(pipe, config) as opened:
            session[:] = [opened]
            return generate(pipe, settings, label)

    runs: dict[str, Callable[[str], Frames]] = {"dense": dense, "sparse": sparse}
    # A pipeline that cannot be enabled is refused before the first dense run, not after it.
    fastdit.enable(pipe, config).close()
    _warm_up(pipe, settings)
    for repeat in range(repeats):
        for kind in ("dense", "sparse") if repeat % 2 == 0 else ("sparse", "dense"):
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
    )


def _warm_up(pipe: Any, settings: GenerationSettings) -> None:
    """One step, so that the first timed run does not pay for allocation and lazy imports."""
    arguments = {**settings.call_arguments(), "num_inference_steps": 1, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    try:
        _call(pipe, arguments, seed=0)
    finally:
        pipe.set_progress_bar_config(disable=False)


def write_video(frames: Frames, path: Path, fps: int) -> None:
    """Encode frames as MP4, in one step: a failure leaves no half-written file.

    Args:
        frames: `[F, H, W, 3]` in [0, 1].
        path: Target, ending in `.mp4`.
        fps: Frames per second.
    """
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        export_to_video(list(frames), str(partial), fps=fps, quality=8, macro_block_size=2)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
