"""All latent frames of a video on one picture, patch by patch, and the way back from a click to a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Patch = tuple[int, int, int]
# Of a frame on the sheet, in pixels; patches are whole pixels, so widths only come near it.
FRAME_WIDTH, SHEET_WIDTH = 176, 1120
GAP, LABEL = 6, 14
PAPER = 24
MAX_KEPT_WIDTH = 512


@dataclass(frozen=True)
class FrameSheet:
    """Where each patch lies.

    Args:
        frames: Latent frames.
        height: Patch rows of a frame.
        width: Patch columns of a frame.
        cell: Pixels of a patch along either side.
        columns: Frames in a row of the sheet.
    """

    frames: int
    height: int
    width: int
    cell: int
    columns: int

    @classmethod
    def of(cls, frames: int, height: int, width: int) -> FrameSheet:
        """A sheet of readable size for a grid of patches."""
        cell = min(24, max(3, round(FRAME_WIDTH / width)))
        columns = min(frames, max(1, (SHEET_WIDTH - GAP) // (width * cell + GAP)))
        return cls(frames, height, width, cell, columns)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        rows = -(-self.frames // self.columns)
        return GAP + rows * self._step[0], GAP + self.columns * self._step[1]

    @property
    def _step(self) -> tuple[int, int]:
        return self.height * self.cell + LABEL + GAP, self.width * self.cell + GAP

    def corner(self, frame: int) -> tuple[int, int]:
        """Top left pixel of a frame: row, column."""
        row, column = divmod(frame, self.columns)
        return GAP + row * self._step[0] + LABEL, GAP + column * self._step[1]

    def patch_at(self, x: int, y: int) -> Patch | None:
        """Frame, row and column of the patch under a pixel; `None` between the frames."""
        if x < GAP or y < GAP:
            return None
        row, down = divmod(y - GAP, self._step[0])
        column, right = divmod(x - GAP, self._step[1])
        down -= LABEL
        frame = row * self.columns + column
        inside = 0 <= down < self.height * self.cell and right < self.width * self.cell
        if column >= self.columns or frame >= self.frames or not inside:
            return None
        return frame, down // self.cell, right // self.cell

    def draw(self, pictures: Pixels) -> Pixels:
        """The sheet.

        Args:
            pictures: One for each frame, `[frames, height * cell, width * cell, 3]`.
        """
        sheet = np.full((*self.size, 3), PAPER, np.uint8)
        for frame, picture in enumerate(pictures):
            top, left = self.corner(frame)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        image = Image.fromarray(sheet)
        pen = ImageDraw.Draw(image)
        for frame in range(self.frames):
            top, left = self.corner(frame)
            pen.text((left, top - LABEL + 1), f"t={frame}", fill=(230, 230, 230))
        return np.asarray(image)

    def enlarge(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of patches `[frames, height, width, ...]` as pixels `[frames, height * cell, width * cell, ...]`."""
        return values.repeat(self.cell, axis=1).repeat(self.cell, axis=2)

    def fit(self, frames: Pixels) -> Pixels:
        """Frames `[frames, H, W, 3]` at the size of the sheet, nearest pixels."""
        down = np.arange(self.height * self.cell) * frames.shape[1] // (self.height * self.cell)
        right = np.arange(self.width * self.cell) * frames.shape[2] // (self.width * self.cell)
        return frames[:, down][:, :, right]


def latent_frames(frames: NDArray[np.float32], number: int) -> Pixels:
    """One frame of a video for each latent frame, evenly spaced, at most `MAX_KEPT_WIDTH` wide.

    Args:
        frames: `[F, H, W, 3]` in [0, 1].
        number: Latent frames.

    Returns:
        uint8 `[number, H', W', 3]`.
    """
    shown = np.linspace(0, len(frames) - 1, number).round().astype(int)
    stride = -(-frames.shape[2] // MAX_KEPT_WIDTH)
    chosen = frames[shown][:, ::stride, ::stride]
    found: Pixels = (chosen.clip(0, 1) * 255).round().astype(np.uint8)
    return found
