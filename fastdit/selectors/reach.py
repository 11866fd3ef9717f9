"""What a set of tokens reaches: relations between places of one axis, applied to marked cells of the video.

A relation that is a product over axes is applied one axis after the other, so no table of all token pairs is needed:
"some query at (t, y, x) is marked and relates to key (t', y', x')" can be settled for t first, then y, then x.
Cells are bool `[N, T, H, W]`, `N` sets of query tokens at once.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def reach_along(cells: torch.Tensor, relation: torch.Tensor, axis: int) -> torch.Tensor:
    """Move marks along one axis: place `k` is marked if some marked place `q` has `relation[q, k]`.

    Args:
        cells: bool `[N, T, H, W]`.
        relation: bool `[n, n]`, `n` places on the axis.
        axis: 1, 2 or 3.

    Returns:
        bool `[N, T, H, W]`.
    """
    # Counts of marks: a product of zeros and ones is positive where one pair fits, at any matmul precision.
    counts = cells.movedim(axis, -1).float() @ relation.float()
    return (counts > 0).movedim(-1, axis)


def reach_frames(cells: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
    """Move marks between frames, keeping their place in the frame; `relation` is bool `[T, T]`."""
    return reach_along(cells, relation, 1)


def full_reach(cells: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
    """Mark all of frame `k` if some marked token's frame `q` has `relation[q, k]`, bool `[T, T]`."""
    frames = cells.flatten(2).any(-1).float() @ relation.float() > 0
    return frames[:, :, None, None].expand_as(cells).clone()


def reach_band(cells: torch.Tensor, radius: int) -> torch.Tensor:
    """Mark all places within `radius` of a marked one along the last axis; nothing wraps around.

    Args:
        cells: bool `[..., n]`.
        radius: Places to each side.

    Returns:
        bool `[..., n]`.
    """
    length = cells.shape[-1]
    radius = min(radius, length)
    # Marks before each place, with empty places around; a band holds a mark if the count differs between its ends.
    before = functional.pad(cells, (radius + 1, radius)).cumsum(-1, dtype=torch.int32)
    return before[..., 2 * radius + 1 :] > before[..., :length]
