"""What one query patch of a recorded call sees, as pictures and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdit.errors import InvalidInputError
from fastdit.recorded_call import RecordedCall
from fastdit_ui.frame_sheet import FrameSheet, Patch, Pixels
from fastdit_ui.patch_pictures import draw_attention, draw_levels, legend, shares


@dataclass(frozen=True, eq=False)
class PatchView:
    """What one query patch sees.

    Args:
        levels: Picture of the keys kept, pooled and dropped.
        attention: Picture of its attention.
        legend: Colours, as HTML.
        rows: Shares of keys and of attention by what becomes of the keys.
        says: One sentence.
    """

    levels: Pixels
    attention: Pixels
    legend: str
    rows: list[dict[str, Any]]
    says: str


def sheet_of(call: RecordedCall) -> FrameSheet:
    """The sheet that a call is drawn on."""
    return FrameSheet.of(call.grid.frames, call.grid.height, call.grid.width)


def token_of(call: RecordedCall, patch: Patch) -> int:
    """Place of a patch in the model's sequence.

    Raises:
        InvalidInputError: There is no such patch.
    """
    grid, (frame, row, column) = call.grid, patch
    if not (0 <= frame < grid.frames and 0 <= row < grid.height and 0 <= column < grid.width):
        raise InvalidInputError(
            f"patch frame={frame}, row={row}, column={column}: accepted are frames 0 to {grid.frames - 1}, rows 0 to "
            f"{grid.height - 1} and columns 0 to {grid.width - 1}"
        )
    return grid.video_start + (frame * grid.height + row) * grid.width + column


def view_patch(call: RecordedCall, frames: Pixels, head: int, patch: Patch) -> PatchView:
    """Draw what a query patch sees in one head.

    Args:
        call: The recorded call.
        frames: One for each latent frame.
        head: Head of the layer.
        patch: The query.

    Raises:
        InvalidInputError: There is no such head or patch, or the frames are those of another video.
    """
    grid = call.grid
    if len(frames) != grid.frames:
        raise InvalidInputError(f"{len(frames)} frames for {grid.frames} latent frames: the run is damaged")
    token = token_of(call, patch)
    levels, weights = call.key_levels(head, token).numpy(), call.attention(head, token).numpy()
    own = np.zeros(grid.length, bool)
    own[call.query_tile(head, token).numpy()] = True
    video = slice(grid.video_start, grid.video_start + grid.video_length)
    shape = (grid.frames, grid.height, grid.width)
    seen, weight, tile = (x[video].reshape(shape) for x in (levels, weights, own))
    sheet = sheet_of(call)
    return PatchView(
        levels=draw_levels(sheet, frames, seen, tile, patch),
        attention=draw_attention(sheet, frames, weight, tile, patch),
        legend=legend(seen),
        rows=shares(levels, weights),
        says=_say(call, head, patch, levels, weights),
    )


def _say(call: RecordedCall, head: int, patch: Patch, levels: Any, weights: Any) -> str:
    frame, row, column = patch
    place = f"Layer {call.layer}, head {head}, step {call.step}; query at frame {frame}, row {row}, column {column}."
    text = call.grid.text_length
    if text:
        start = call.grid.text_start
        place += f" The {text} text tokens get {weights[start : start + text].sum():.1%} of its attention."
    if not any(head in launch.heads for launch in call.launches):
        reason = f" ({call.dense_reason})" if call.dense_reason else ""
        return f"{place} This head was dense here{reason}: it sees all keys."
    kept = float(weights[levels == 0].sum())
    return f"{place} Of its attention {kept:.1%} lies on the {(levels == 0).mean():.1%} of keys that are kept."
