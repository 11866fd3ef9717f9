"""Options of the pipeline call that several commands share."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter


@Parameter(name="*", group="Video")
@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Arguments of the pipeline call that every command takes; unset ones take the model's defaults.

    Args:
        height: Pixels.
        width: Pixels.
        num_frames: Frames.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None


@Parameter(name="*", group="Video")
@dataclass(frozen=True, kw_only=True)
class CallOptions(PipelineOptions):
    """Arguments of the pipeline call; unset ones take the model's defaults.

    Args:
        negative_prompt: What to avoid.
    """

    negative_prompt: str | None = None


@Parameter(name="*", group="Video")
@dataclass(frozen=True, kw_only=True)
class VideoOptions(CallOptions):
    """Arguments of the call that makes one video, and its frame rate.

    Args:
        seed: Seed of the initial noise.
        fps: Frames per second of the written video.
    """

    seed: int = 0
    fps: int | None = None


DEFAULT_CALL = CallOptions()
DEFAULT_VIDEO = VideoOptions()
