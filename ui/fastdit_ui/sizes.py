"""Sizes that a model can make: what is asked for, moved to the nearest one, with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastdit.errors import ConfigError
from fastdit_ui.settings import MAX_FRAMES, MAX_SIDE


@dataclass(frozen=True)
class Size:
    """A size that the model accepts.

    Args:
        width: Pixels.
        height: Pixels.
        num_frames: Frames.
        tokens: Length of the self-attention sequence; `None` if the model's rules are unknown.
        notes: What was moved and why.
    """

    width: int
    height: int
    num_frames: int
    tokens: int | None
    notes: tuple[str, ...]


def settle(shape: Any, width: float, height: float, seconds: float, fps: int) -> Size:
    """The nearest size that a model accepts.

    Args:
        shape: The model's `ModelShape`; `None` if its rules are unknown, and nothing is moved then.
        width: Pixels.
        height: Pixels.
        seconds: Duration.
        fps: Frames per second.

    Raises:
        ConfigError: A value is no number, or out of range.
    """
    _check_sides(width, height)
    if not _is_number(seconds) or not 0 < seconds * fps <= MAX_FRAMES:
        raise ConfigError(f"duration={seconds!r} s: accepted are more than 0 and at most {MAX_FRAMES / fps:g} seconds")
    frames = max(1, round(seconds * fps))
    if shape is None:
        note = "The size rules of this model are not known here; its pipeline may refuse a size."
        return Size(round(width), round(height), frames, None, (note,))
    unit = math.lcm(shape.spatial * shape.patch, shape.accepts)
    notes = []
    sides = {"Width": float(width), "Height": float(height)}
    for name, value in sides.items():
        sides[name] = max(unit, math.floor(value / unit + 0.5) * unit)
        if sides[name] != value:
            notes.append(f"{name} {value:g} becomes {sides[name]}: the model works in blocks of {unit} pixels.")
    step = shape.temporal
    settled = max(0, math.floor((frames - 1) / step + 0.5)) * step + 1
    if settled != frames:
        notes.append(
            f"{frames} frames become {settled} ({settled / fps:.2f} s at {fps} frames per second): "
            f"after the first, the model makes {step} frames at a time."
        )
    (tall, wide, settled), changes = shape.settle_size(int(sides["Height"]), int(sides["Width"]), settled)
    return Size(wide, tall, settled, shape.grid(tall, wide, settled).length, (*notes, *changes))


def _check_sides(width: float, height: float) -> None:
    for name, value in (("width", width), ("height", height)):
        if not _is_number(value) or not 1 <= value <= MAX_SIDE:
            raise ConfigError(f"{name}={value!r}: accepted are 1 to {MAX_SIDE} pixels")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
