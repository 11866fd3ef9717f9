"""Which shape a coverage map shows: overlap with an ideal shape of the same area and centroid."""

from __future__ import annotations

import math

import numpy as np
import torch

from fastdit_pipelines.tiny.segmentation import Array
from fastdit_pipelines.tiny.world import CROSS_ARM, SHAPES, signed_distance

# Area of each shape over its squared radius, from the outlines in `world.signed_distance`.
_SLOPE, _TOP, _BOTTOM = math.cos(math.pi / 6), -1.12, 0.75
UNIT_AREAS: dict[str, float] = {
    "circle": math.pi,
    "square": (2 * 0.86) ** 2,
    "triangle": (0.56 + 0.5 * _BOTTOM) / _SLOPE * (_BOTTOM - _TOP),
    "cross": 8 * CROSS_ARM - (2 * CROSS_ARM) ** 2,
}
# Centroid below the shape's own origin, over its radius.
CENTROID_OFFSETS: dict[str, float] = {"triangle": _TOP + 2 / 3 * (_BOTTOM - _TOP)}
RADIUS_FACTORS = (0.94, 1.0, 1.06)


def shape_overlaps(cover: Array) -> dict[str, float]:
    """Overlap (intersection over union, soft) with the best fitting instance of every shape.

    Args:
        cover: Coverage `[h, w]` in [0, 1] of the object's bounding box.
    """
    height, width = cover.shape
    weights = torch.from_numpy(cover)
    rows = torch.arange(height).view(-1, 1) + 0.5
    columns = torch.arange(width).view(1, -1) + 0.5
    total = weights.sum()
    x, y = columns - (weights * columns).sum() / total, rows - (weights * rows).sum() / total
    overlaps = {}
    for shape in SHAPES:
        radius = math.sqrt(total.item() / UNIT_AREAS[shape])
        scores = []
        for factor in RADIUS_FACTORS:
            size = radius * factor
            distance = signed_distance(shape, x, y + CENTROID_OFFSETS.get(shape, 0.0) * size, size)
            ideal = (0.5 - distance).clamp(0, 1)
            shared = torch.minimum(ideal, weights).sum().item()
            # Parts of the ideal shape beyond the bounding box count as missed.
            union = UNIT_AREAS[shape] * size**2 + total.item() - shared
            scores.append(shared / union)
        overlaps[shape] = max(scores)
    return overlaps


def mean_overlaps(covers: list[Array]) -> dict[str, float]:
    """Mean of `shape_overlaps` over several frames."""
    each = [shape_overlaps(cover) for cover in covers]
    return {shape: float(np.mean([overlaps[shape] for overlaps in each])) for shape in SHAPES}
