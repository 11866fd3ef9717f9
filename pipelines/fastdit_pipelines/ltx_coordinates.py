"""The token grid of `LTXConditionPipeline`, which passes the place of every token instead of sizes."""

from __future__ import annotations

import weakref
from itertools import pairwise

import torch

from fastdit.errors import UnsupportedModelError

Layout = tuple[int, int, int, int]


class CoordinateReader:
    """Reads a grid from coordinates; waits for the device once per run, because all steps pass the same tensor."""

    def __init__(self) -> None:
        self._latest: tuple[weakref.ref[torch.Tensor], Layout] | None = None

    def read(self, coordinates: torch.Tensor) -> Layout:
        """Frames, token rows, token columns, and how many of the frames stand before the video's first.

        Args:
            coordinates: `[B, 3, S]`: time, row and column of every token, the same in all batch entries.

        Raises:
            UnsupportedModelError: The tokens are no whole frames in raster order.
        """
        if self._latest is not None and self._latest[0]() is coordinates:
            return self._latest[1]
        layout = _layout(coordinates[0].cpu())
        self._latest = weakref.ref(coordinates), layout
        return layout


def _layout(coordinates: torch.Tensor) -> Layout:
    times, rows, columns = coordinates
    height, width = len(rows.unique()), len(columns.unique())
    frames, rest = divmod(len(times), height * width)
    if rest == 0:
        time, row, column = coordinates.unflatten(1, (frames, height, width))
        whole = (time == time[:, :1, :1]).all() and (row == row[:1, :, :1]).all() and (column == column[:1, :1]).all()
        if whole:
            return frames, height, width, _video_start(time[:, 0, 0].tolist())
    raise UnsupportedModelError(
        f"video_coords place {len(times)} tokens in {height} rows and {width} columns, which are no whole frames in "
        "raster order: this mode of the model is not supported; call fastdit.disable(pipe) to go on"
    )


def _video_start(times: list[float]) -> int:
    """The first frame of the longest run of rising times, which is the video.

    Conditions at later times come before it; of `LTXI2VLongMultiPromptPipeline` they come behind it, also at times
    before its first.
    """
    breaks = [number for number in range(1, len(times)) if times[number] <= times[number - 1]]
    return max(pairwise([0, *breaks, len(times)]), key=lambda run: run[1] - run[0])[0]
