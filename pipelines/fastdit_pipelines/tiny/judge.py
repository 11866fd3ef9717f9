"""Reads a clip of one moving shape and says what it shows; no network is involved.

The foreground is what differs from the median background of its row; colour is the nearest palette colour, shape the
template with the largest overlap, direction the main axis of the centroid's path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit_pipelines.tiny.world import COLORS, DIRECTIONS, SHAPES, MovingObject, signed_distance

FOREGROUND_THRESHOLD = 0.12
AREA_RANGE = (0.004, 0.2)
MIN_TRAVEL = 0.06
TEMPLATE_RADII = torch.linspace(0.09, 0.23, 15).tolist()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a clip shows; `None` where no object is found.

    Args:
        present_share: Share of frames with an object of plausible size.
        color: A key of `COLORS`.
        shape: A member of `SHAPES`.
        direction: A key of `DIRECTIONS`; `None` if it hardly moves.
        travel: Distance between first and last centroid, as a fraction of the shorter side.
    """

    present_share: float
    color: str | None
    shape: str | None
    direction: str | None
    travel: float


def read_clip(frames: torch.Tensor) -> Reading:
    """Describe a clip.

    Args:
        frames: `[F, 3, H, W]` in [0, 1].
    """
    background = frames.permute(1, 2, 0, 3).flatten(2).median(-1).values.unsqueeze(-1)
    difference = (frames - background).abs().amax(1)
    cover = (difference > FOREGROUND_THRESHOLD).float()
    area = cover.mean((1, 2))
    seen = (area > AREA_RANGE[0]) & (area < AREA_RANGE[1])
    share = seen.float().mean().item()
    if seen.sum() < 2:
        return Reading(present_share=share, color=None, shape=None, direction=None, travel=0.0)
    chosen = seen.nonzero().flatten()
    centroids = torch.stack([_centroid(cover[frame]) for frame in chosen])
    direction, travel = _direction(centroids, min(frames.shape[2:]))
    votes = [_shape(cover[frame]) for frame in chosen[:: max(1, len(chosen) // 5)]]
    return Reading(
        present_share=share,
        color=_color(frames[chosen], difference[chosen]),
        shape=max(SHAPES, key=votes.count),
        direction=direction,
        travel=travel,
    )


def judge_object(reading: Reading, item: MovingObject) -> dict[str, bool]:
    """Compare a reading with the object that was asked for.

    Returns:
        Verdicts `object`, `color`, `shape`, `direction`, and `all` of them.
    """
    verdicts = {
        "object": reading.present_share >= 0.9,
        "color": reading.color == item.color,
        "shape": reading.shape == item.shape,
        "direction": reading.direction == item.direction,
    }
    return {**verdicts, "all": all(verdicts.values())}


def _centroid(cover: torch.Tensor) -> torch.Tensor:
    """Mean `(x, y)` of the covered pixels, in pixels from the top left corner."""
    height, width = cover.shape
    total = cover.sum().clamp_min(1e-6)
    x = (cover.sum(0) * (torch.arange(width) + 0.5)).sum() / total
    y = (cover.sum(1) * (torch.arange(height) + 0.5)).sum() / total
    return torch.stack([x, y])


def _direction(centroids: torch.Tensor, side: int) -> tuple[str | None, float]:
    """Main axis of the path from the first to the last quarter, and its length over `side`."""
    quarter = max(1, len(centroids) // 4)
    step = (centroids[-quarter:].mean(0) - centroids[:quarter].mean(0)) / side
    # The means of two quarters are closer than the ends of the path.
    travel = step.norm().item() * len(centroids) / max(1, len(centroids) - quarter)
    if travel < MIN_TRAVEL:
        return None, travel
    return max(DIRECTIONS, key=lambda name: step @ torch.tensor(DIRECTIONS[name]).float()), travel


def _color(frames: torch.Tensor, difference: torch.Tensor) -> str:
    """Palette colour nearest to the median of the pixels that stand out most."""
    pixels = frames.permute(0, 2, 3, 1)[difference > 0.6 * difference.amax((1, 2), keepdim=True)]
    median = pixels.median(0).values
    return min(COLORS, key=lambda name: (median - torch.tensor(COLORS[name])).norm().item())


def _shape(cover: torch.Tensor) -> str:
    """Shape whose best template overlaps most (intersection over union), centroids aligned."""
    height, width = cover.shape
    rows = torch.arange(height).view(-1, 1) + 0.5
    columns = torch.arange(width).view(1, -1) + 0.5
    target = _centroid(cover)
    best, winner = -1.0, SHAPES[0]
    for shape in SHAPES:
        for radius in TEMPLATE_RADII:
            size = radius * min(height, width)
            centered = (0.5 - signed_distance(shape, columns - width / 2, rows - height / 2, size)).clamp(0, 1)
            shift = target - _centroid(centered)
            x, y = columns - width / 2 - shift[0], rows - height / 2 - shift[1]
            template = (0.5 - signed_distance(shape, x, y, size)).clamp(0, 1)
            overlap = (torch.minimum(template, cover).sum() / torch.maximum(template, cover).sum()).item()
            if overlap > best:
                best, winner = overlap, shape
    return winner
