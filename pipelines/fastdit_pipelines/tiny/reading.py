"""Reads a clip of moving shapes: objects followed over time, and what each of them looks like and does.

No network is involved. Pieces of consecutive frames are joined by distance and colour; a path's direction and speed
are those of the straight line fitted to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from fastdit.errors import InvalidInputError
from fastdit_pipelines.tiny.segmentation import Array, Piece, Segmentation, segment
from fastdit_pipelines.tiny.shape_match import mean_overlaps
from fastdit_pipelines.tiny.world import BACKGROUNDS, DIRECTIONS, SPEEDS

MIN_TRAVEL = 0.07
MIN_SHAPE_OVERLAP = 0.75
MIN_TRACK_SHARE = 0.25
MAX_STEP = 0.35
COLOR_PENALTY = 0.15
SHAPE_FRAMES = 7
MAX_BACKGROUND_DISTANCE = 0.18
# Below this many frames a path says nothing about smoothness.
JERK_FRAMES = 4


@dataclass
class _Track:
    frames: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ObjectReading:
    """One object of a clip.

    Args:
        frames: Numbers of the frames that show it.
        centers: Centroids `[n, 2]` in those frames, over the shorter side.
        present_share: Share of all frames that show it.
        color: A key of `COLORS`, or `None`.
        color_share: Share of its frames with that colour.
        overlaps: Overlap with the best instance of every shape, mean over frames.
        shape: Shape of the largest overlap; `None` below `MIN_SHAPE_OVERLAP`.
        velocity: Slope `(x, y)` of its path: shorter sides per clip.
        jerk: Root mean square of the path's second differences over its mean step (plus 1 % of the side).
        color_change: Mean absolute change of its colour between frames.
    """

    frames: tuple[int, ...]
    centers: Array
    present_share: float
    color: str | None
    color_share: float
    overlaps: dict[str, float]
    shape: str | None
    velocity: tuple[float, float]
    jerk: float
    color_change: float

    @property
    def travel(self) -> float:
        """Distance covered over the clip, in shorter sides."""
        return float(np.hypot(*self.velocity))

    @property
    def direction(self) -> str | None:
        """Key of `DIRECTIONS` nearest to the path; `None` if it hardly moves."""
        if self.travel < MIN_TRAVEL:
            return None
        return max(DIRECTIONS, key=lambda name: float(np.dot(self.velocity, DIRECTIONS[name])))

    @property
    def speed(self) -> str | None:
        """Nearest key of `SPEEDS`; `None` if it hardly moves."""
        if self.travel < MIN_TRAVEL:
            return None
        return min(SPEEDS, key=lambda name: abs(SPEEDS[name] - self.travel))


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """What a clip shows.

    Args:
        objects: In order of frames shown times area, largest first.
        counts: Objects in every frame `[F]`.
        background: Nearest key of `BACKGROUNDS`; `None` if the border is coloured or between two levels.
        background_level: Median level over the clip, mean over RGB.
        background_change: Mean absolute change of the background between frames.
        clutter: Share of pixels that belong neither to the background nor to an object.
    """

    objects: tuple[ObjectReading, ...]
    counts: tuple[int, ...]
    background: str | None
    background_level: float
    background_change: float
    clutter: float


def read_clip(frames: torch.Tensor) -> ClipReading:
    """Describe a clip.

    Args:
        frames: `[F, 3, H, W]` in [0, 1], at least two frames.

    Raises:
        InvalidInputError: Another layout, or values outside [0, 1].
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[0] < 2 or min(frames.shape[2:]) < 16:
        raise InvalidInputError(
            f"clip of shape {tuple(frames.shape)}: accepted is [F, 3, H, W] with F >= 2, H and W >= 16"
        )
    pixels = frames.detach().to("cpu", torch.float32).permute(0, 2, 3, 1).contiguous().numpy()
    if not np.isfinite(pixels).all() or pixels.min() < -0.01 or pixels.max() > 1.01:
        raise InvalidInputError("clip has values outside [0, 1]: accepted are frames scaled to [0, 1]")
    parts = segment(pixels)
    count = len(pixels)
    tracks = [track for track in _follow(parts) if len(track.frames) >= max(2, MIN_TRACK_SHARE * count)]
    tracks.sort(key=lambda track: -sum(piece.area for piece in track.pieces))
    level = np.median(parts.background, 0)
    return ClipReading(
        objects=tuple(_read_object(track, count) for track in tracks),
        counts=tuple(len(pieces) for pieces in parts.pieces),
        background=_background_name(level),
        background_level=float(level.mean()),
        background_change=float(np.abs(np.diff(parts.background, axis=0)).mean()),
        clutter=parts.clutter,
    )


def _follow(parts: Segmentation) -> list[_Track]:
    """Join the pieces of consecutive frames, cheapest pairs first."""
    tracks: list[_Track] = []
    for number, pieces in enumerate(parts.pieces):
        costs = [
            (_cost(track.pieces[-1], piece), row, column)
            for row, track in enumerate(tracks)
            for column, piece in enumerate(pieces)
        ]
        taken_rows: set[int] = set()
        taken_columns: set[int] = set()
        for cost, row, column in sorted(costs):
            if cost > MAX_STEP or row in taken_rows or column in taken_columns:
                continue
            taken_rows.add(row)
            taken_columns.add(column)
            tracks[row].frames.append(number)
            tracks[row].pieces.append(pieces[column])
        tracks += [_Track([number], [piece]) for column, piece in enumerate(pieces) if column not in taken_columns]
    return tracks


def _cost(last: Piece, piece: Piece) -> float:
    distance = float(np.hypot(piece.center[0] - last.center[0], piece.center[1] - last.center[1]))
    return distance + (COLOR_PENALTY if piece.color_name != last.color_name else 0.0)


def _read_object(track: _Track, count: int) -> ObjectReading:
    centers = np.array([piece.center for piece in track.pieces], dtype=np.float32)
    times = np.array(track.frames) / (count - 1)
    slope = np.polyfit(times, centers, 1)[0]
    names = Counter(piece.color_name for piece in track.pieces)
    color, votes = names.most_common(1)[0]
    chosen = np.unique(np.linspace(0, len(track.pieces) - 1, SHAPE_FRAMES).round().astype(int))
    overlaps = mean_overlaps([track.pieces[index].cover for index in chosen])
    shape = max(overlaps, key=lambda name: overlaps[name])
    colors = np.stack([piece.color for piece in track.pieces])
    return ObjectReading(
        frames=tuple(track.frames),
        centers=centers,
        present_share=len(track.frames) / count,
        color=color,
        color_share=votes / len(track.pieces),
        overlaps=overlaps,
        shape=shape if overlaps[shape] >= MIN_SHAPE_OVERLAP else None,
        velocity=(float(slope[0]), float(slope[1])),
        jerk=_jerk(centers),
        color_change=float(np.abs(np.diff(colors, axis=0)).mean()),
    )


def _jerk(centers: Array) -> float:
    if len(centers) < JERK_FRAMES:
        return 0.0
    step = float(np.linalg.norm(centers[-1] - centers[0])) / (len(centers) - 1)
    second = np.linalg.norm(np.diff(centers, n=2, axis=0), axis=1)
    return float(np.sqrt(np.square(second).mean())) / (step + 0.01)


def _background_name(level: Array) -> str | None:
    if level.max() - level.min() > 0.15:
        return None
    gray = float(level.mean())
    name = min(BACKGROUNDS, key=lambda key: abs(BACKGROUNDS[key] - gray))
    return name if abs(BACKGROUNDS[name] - gray) <= MAX_BACKGROUND_DISTANCE else None
