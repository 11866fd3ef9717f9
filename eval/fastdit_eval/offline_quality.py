"""What can be said of a video's quality without any network: flicker, smoothness of motion, amount of motion.

`temporal_flickering` is VBench's formula (Huang et al., CVPR 2024), without its filter for static clips. The names
ending in `_dis` follow VBench's protocols with DIS optical flow (Kroeger et al., ECCV 2016) in place of AMT-S and RAFT,
so they compare a sparse run with its dense one and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdit.errors import InvalidInputError
from fastdit_eval.metric import MetricUnavailableError

Bytes = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
# VBench looks at 8 frames a second, asks 4 pairs of 16 frames to move, and by 6 pixels in 256.
SAMPLED_FPS, MOVING_PAIRS, REFERENCE_FRAMES, MOVED_PIXELS, REFERENCE_SIZE = 8, 4, 16, 6.0, 256
FASTEST = 0.05
# DIS looks for patches of 8 pixels on several scales; below this it finds nothing.
LEAST_SIZE = 32


def temporal_flickering(frames: Bytes) -> float:
    """1 - mean over t of mean|I_t - I_(t+1)| / 255; 1 is a still picture.

    Args:
        frames: `[F, H, W, 3]`, at least two.
    """
    _check_frames(frames, 2)
    steps = [np.abs(a.astype(np.int16) - b).mean(dtype=np.float64) for a, b in pairwise(frames)]
    return float(1 - np.mean(steps) / 255)


def motion_smoothness_dis(frames: Bytes) -> float:
    """1 - mean error / 255 of every odd frame against the one interpolated from its even neighbours.

    The middle frame is the mean of both neighbours, each warped half-way along the flow to the other.

    Args:
        frames: `[F, H, W, 3]`, at least three.
    """
    _check_frames(frames, 3)
    errors = []
    for first in range(0, len(frames) - 2, 2):
        middle = _halfway(frames[first], frames[first + 2])
        errors.append(np.abs(middle.astype(np.int16) - frames[first + 1]).mean(dtype=np.float64))
    return float(1 - np.mean(errors) / 255)


def dynamic_degree_dis(frames: Bytes, fps: float) -> tuple[bool, float]:
    """Whether a clip moves by VBench's thresholds, and by how much.

    Args:
        frames: `[F, H, W, 3]`, at least two after taking every `max(1, round(fps / 8))`-th.
        fps: Frames per second of the video.

    Returns:
        Whether at least `round(4 N / 16)` of the pairs of N frames move by more than `6 min(H, W) / 256` pixels; and
        the mean movement, in pixels. The movement of a pair is the mean of the fastest 5 % of its pixels.
    """
    chosen = frames[:: max(1, round(fps / SAMPLED_FPS))]
    _check_frames(chosen, 2)
    moved = [_fastest(flow(a, b)) for a, b in pairwise(chosen)]
    threshold = MOVED_PIXELS * min(frames.shape[1:3]) / REFERENCE_SIZE
    needed = round(MOVING_PAIRS * len(chosen) / REFERENCE_FRAMES)
    return sum(value > threshold for value in moved) >= needed, float(np.mean(moved))


def flow(first: Bytes, second: Bytes) -> Flow:
    """DIS optical flow from one frame to another, `[H, W, 2]` (x, y) in pixels, medium preset.

    Args:
        first: `[H, W, 3]` RGB.
        second: Likewise.
    """
    cv2 = _opencv()
    gray = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    found: Flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*gray, None)
    return found


def backbone() -> str:
    """The implementation of the flow, for results."""
    return f"opencv-{_opencv().__version__} DIS medium"


def _halfway(first: Bytes, second: Bytes) -> Bytes:
    cv2 = _opencv()
    height, width = first.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    warped = []
    # Flow is slowly varying, so that of the wanted pixel is read at its own place.
    for frame, motion in ((first, flow(second, first)), (second, flow(first, second))):
        places = x + 0.5 * motion[..., 0], y + 0.5 * motion[..., 1]
        warped.append(cv2.remap(frame.astype(np.float32), *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    middle: Bytes = (0.5 * (warped[0] + warped[1])).round().clip(0, 255).astype(np.uint8)
    return middle


def _fastest(motion: Flow) -> float:
    speed = np.sort(np.hypot(motion[..., 0], motion[..., 1]).ravel())
    return float(speed[-max(1, int(FASTEST * speed.size)) :].mean())


def _check_frames(frames: Bytes, least: int) -> None:
    if frames.ndim != 4 or frames.dtype != np.uint8 or len(frames) < least:
        raise InvalidInputError(
            f"frames of shape {frames.shape}, {frames.dtype}: accepted are at least {least}, [F, H, W, 3] uint8"
        )


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MetricUnavailableError(f"OpenCV cannot be imported ({error}): pip install 'fastdit[eval]'") from error
    return cv2


def measure_clip(frames: Bytes, fps: float | None, unavailable: dict[str, str]) -> dict[str, float]:
    """All indicators of one clip.

    Args:
        frames: `[F, H, W, 3]`.
        fps: Frames per second; `None` if unknown, which leaves out the amount of motion.
        unavailable: Takes the reasons of what could not be computed.

    Returns:
        Values by name; `dynamic_degree_dis` is 0 or 1.
    """
    values = {"temporal_flickering": temporal_flickering(frames)}
    reason = None
    if min(frames.shape[1:3]) < LEAST_SIZE:
        reason = f"frames are smaller than {LEAST_SIZE} pixels, too few for DIS flow"
    try:
        _opencv()
    except MetricUnavailableError as error:
        reason = str(error)
    needs_flow: Sequence[str] = ("motion_smoothness_dis", "dynamic_degree_dis", "flow_top5_dis")
    if reason is not None:
        unavailable.update(dict.fromkeys(needs_flow, reason))
        return values
    if len(frames) > 2:
        values["motion_smoothness_dis"] = motion_smoothness_dis(frames)
    else:
        unavailable["motion_smoothness_dis"] = "fewer than three frames"
    if fps is None:
        unavailable.update(dict.fromkeys(needs_flow[1:], "frames per second are unknown: give --fps"))
    else:
        moves, amount = dynamic_degree_dis(frames, fps)
        values |= {"dynamic_degree_dis": float(moves), "flow_top5_dis": amount}
    return values
