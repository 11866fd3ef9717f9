"""Finds the objects in every frame of a clip: what differs from the background, in connected pieces.

The background is a plain level with a vertical gradient, read off the border of each frame. A piece that holds two
palette colours in different places is two objects that touch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.measure import label

from fastdit_pipelines.tiny.world import COLORS

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FOREGROUND_THRESHOLD = 0.12
# Share of the clip's contrast above which a pixel belongs to an object.
CONTRAST_SHARE = 0.38
# Pieces outside, as fractions of the squared shorter side, are specks or whole-frame changes.
AREA_RANGE = (0.012, 0.3)
MAX_COLOR_DISTANCE = 0.35
BORDER = 0.02


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One object in one frame.

    Args:
        center: Centroid `(x, y)` over the shorter side.
        area: Covered area over the squared shorter side.
        color: Median `[3]` of its inner pixels.
        cover: Coverage `[h, w]` in [0, 1] of its bounding box.
    """

    center: tuple[float, float]
    area: float
    color: Array
    cover: Array

    @property
    def color_name(self) -> str | None:
        """Nearest key of `COLORS`; `None` if none is near."""
        return nearest_color(self.color)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The pieces of every frame.

    Args:
        pieces: For each frame, largest first.
        background: Level `[F, 3]` of the background.
        clutter: Share of foreground pixels that belong to no piece, over all pixels.
    """

    pieces: list[list[Piece]]
    background: Array
    clutter: float


def nearest_color(color: Array) -> str | None:
    """Nearest key of `COLORS` by Euclidean distance in RGB; `None` beyond `MAX_COLOR_DISTANCE`."""
    palette = np.array(list(COLORS.values()), dtype=np.float32)
    distance = np.sqrt(np.square(palette - color).sum(-1))
    best = int(distance.argmin())
    return list(COLORS)[best] if distance[best] <= MAX_COLOR_DISTANCE else None


def segment(frames: Array) -> Segmentation:
    """Split a clip into background and pieces.

    Args:
        frames: `[F, H, W, 3]` in [0, 1].
    """
    background, rows = _background(frames)
    difference = np.abs(frames - rows[:, :, None, :]).max(-1)
    side = min(frames.shape[1:3])
    standing_out = difference > FOREGROUND_THRESHOLD
    if standing_out.any():
        contrast = float(np.quantile(difference[standing_out], 0.9))
        standing_out = difference > max(FOREGROUND_THRESHOLD, CONTRAST_SHARE * contrast)
    pieces, claimed = [], 0
    for frame, gap, mask in zip(frames, difference, standing_out, strict=True):
        found = []
        for part in _parts(frame, mask, side):
            found.append(_piece(frame, gap, part, side))
            claimed += int(part.sum())
        pieces.append(sorted(found, key=lambda piece: -piece.area))
    clutter = (int(standing_out.sum()) - claimed) / standing_out.size
    return Segmentation(pieces=pieces, background=background, clutter=clutter)


def _background(frames: Array) -> tuple[Array, Array]:
    """Level `[F, 3]` of each frame, and the level of its rows `[F, H, 3]`."""
    count, height, width, _ = frames.shape
    border = max(1, round(BORDER * min(height, width)))
    ring = (frames[:, :border], frames[:, -border:], frames[:, :, :border], frames[:, :, -border:])
    level = np.median(np.concatenate([part.reshape(count, -1, 3) for part in ring], 1), 1)
    slope = np.median(frames[:, -border:], (1, 2)) - np.median(frames[:, :border], (1, 2))
    # A steeper slope is an object at the border, not the background's gradient.
    slope = np.where(np.abs(slope) > FOREGROUND_THRESHOLD, 0.0, slope)
    place = (np.arange(height) + 0.5) / height - 0.5
    rows = level[:, None] + slope[:, None] * place[None, :, None]
    return level.astype(np.float32), rows.astype(np.float32)


def _parts(frame: Array, mask: Mask, side: int) -> list[Mask]:
    """Masks of the connected pieces of plausible size."""
    low, high = (bound * side * side for bound in AREA_RANGE)
    labels = label(mask, connectivity=1)
    sizes = np.bincount(labels.ravel())
    parts: list[Mask] = []
    for number in range(1, len(sizes)):
        if sizes[number] < low:
            continue
        part = labels == number
        split = _split_by_color(frame, part, side)
        parts += [piece for piece in split if low <= piece.sum() <= high]
    return parts


def _split_by_color(frame: Array, part: Mask, side: int) -> list[Mask]:
    """Two masks where a piece holds two palette colours side by side, else the piece itself."""
    inner = part.copy()
    inner[1:-1, 1:-1] &= part[:-2, 1:-1] & part[2:, 1:-1] & part[1:-1, :-2] & part[1:-1, 2:]
    if not inner.any():
        return [part]
    palette = np.array(list(COLORS.values()), dtype=np.float32)
    names = np.square(frame[inner][:, None] - palette).sum(-1).argmin(-1)
    counts = np.bincount(names, minlength=len(palette))
    first, second = np.argsort(counts)[::-1][:2]
    if counts[second] < 0.25 * counts.sum():
        return [part]
    y, x = np.nonzero(inner)
    centers = [np.array([x[names == name].mean(), y[names == name].mean()]) for name in (first, second)]
    # A blurred rim has another colour too, but the same centre.
    if np.linalg.norm(centers[0] - centers[1]) < 0.1 * side:
        return [part]
    pair = palette[[first, second]]
    nearer_first = np.square(frame - pair[0]).sum(-1) <= np.square(frame - pair[1]).sum(-1)
    return [part & nearer_first, part & ~nearer_first]


def _piece(frame: Array, gap: Array, part: Mask, side: int) -> Piece:
    ys, xs = np.nonzero(part)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    inside = part[top:bottom, left:right]
    contrast = float(np.quantile(gap[ys, xs], 0.8))
    cover = np.where(inside, np.clip(gap[top:bottom, left:right] / contrast, 0, 1), 0).astype(np.float32)
    total = float(cover.sum())
    x = float((cover.sum(0) * (np.arange(left, right) + 0.5)).sum()) / total
    y = float((cover.sum(1) * (np.arange(top, bottom) + 0.5)).sum()) / total
    core = gap[ys, xs] >= 0.8 * contrast
    color = np.median(frame[ys[core], xs[core]], 0).astype(np.float32)
    return Piece(center=(x / side, y / side), area=total / side**2, color=color, cover=cover)
