"""A picture of many clips at once: one row of frames for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

MAX_FRAMES = 6


def draw_contact_sheet(clips: Sequence[tuple[str, npt.NDArray[np.float32]]], path: Path) -> None:
    """Write a PNG with evenly spaced frames of every clip.

    Args:
        clips: Title and frames `[F, H, W, 3]` in [0, 1] of each.
        path: Target.
    """
    strips = []
    for _, frames in clips:
        shown = np.linspace(0, len(frames) - 1, min(MAX_FRAMES, len(frames))).round().astype(int)
        strips.append(np.concatenate(list(frames[shown]), axis=1).clip(0, 1))
    heights = [strip.shape[0] / strip.shape[1] * 7 + 0.3 for strip in strips]
    # Agg explicitly through Figure: no global backend is touched, no display is needed.
    figure = Figure(figsize=(7, sum(heights)), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, _), strip in zip(axes, clips, strips, strict=True):
        axis.imshow(strip)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=90, format="png")
