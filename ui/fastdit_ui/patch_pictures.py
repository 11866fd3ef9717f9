"""What one query patch sees: keys kept, pooled and dropped, and its attention, drawn over the frames."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from fastdit_ui.frame_sheet import FrameSheet, Patch, Pixels

DROPPED = -1
# Okabe and Ito's colours, which colour-blind people tell apart, for pooling levels 1, 2, ...
LEVEL_COLORS = (
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (230, 159, 0),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
OWN_TILE = (0, 255, 255)
TINT, BRIGHT = 0.55, 0.3
HEAT = matplotlib.colormaps["inferno"]


def level_color(level: int) -> tuple[int, int, int]:
    """Colour of a pooling level from 1 on."""
    return LEVEL_COLORS[(level - 1) % len(LEVEL_COLORS)]


def draw_levels(
    sheet: FrameSheet, frames: Pixels, levels: NDArray[np.int8], own_tile: NDArray[np.bool_], query: Patch
) -> Pixels:
    """Kept keys bright, pooled ones tinted by their level, dropped ones dark and hatched.

    Args:
        sheet: Where the patches lie.
        frames: uint8 `[T, H, W, 3]`, one for each latent frame.
        levels: int8 `[T, height, width]`; `DROPPED` for keys that are not seen.
        own_tile: Patches of the query's tile, likewise.
        query: The query patch.
    """
    picture = sheet.fit(frames).astype(np.float32)
    seen = sheet.enlarge(levels)
    gray = picture.mean(-1, keepdims=True)
    # Brighter than the video, or keys kept on a dark background would look dropped.
    picture = (1 - BRIGHT) * picture + BRIGHT * 255
    for level in range(1, int(levels.max()) + 1):
        tinted = (1 - TINT) * gray + TINT * np.array(level_color(level), np.float32)
        picture = np.where((seen == level)[..., None], tinted, picture)
    down, right = np.indices(picture.shape[1:3])
    hatched = (down + right) % 6 == 0
    dark = gray * 0.22 + 40 * hatched[..., None]
    picture = np.where((seen == DROPPED)[..., None], dark, picture)
    return _finish(sheet, picture, own_tile, query)


def draw_attention(
    sheet: FrameSheet, frames: Pixels, weights: NDArray[np.float32], own_tile: NDArray[np.bool_], query: Patch
) -> Pixels:
    """Attention of a query over the frames: bright where it looks, on a square-root scale, over the frames in grey.

    Args:
        sheet: Where the patches lie.
        frames: uint8 `[T, H, W, 3]`, one for each latent frame.
        weights: Probabilities `[T, height, width]`.
        own_tile: Patches of the query's tile, bool `[T, height, width]`.
        query: The query patch.
    """
    strength = np.sqrt(weights / max(float(weights.max()), 1e-12))
    heat = sheet.enlarge(HEAT(strength)[..., :3] * 255)
    gray = sheet.fit(frames).astype(np.float32).mean(-1, keepdims=True)
    return _finish(sheet, 0.25 * gray + 0.75 * heat, own_tile, query)


def shares(levels: NDArray[Any], weights: NDArray[Any]) -> list[dict[str, Any]]:
    """What becomes of the keys of a query: share of keys and share of its attention, by level, dropped ones last.

    Args:
        levels: Of all keys `[S]`.
        weights: Attention probabilities `[S]`.
    """
    rows = []
    for level in [*range(int(levels.max()) + 1), DROPPED]:
        chosen = levels == level
        name = "dropped" if level == DROPPED else "kept" if level == 0 else f"pooled by {2**level}"
        rows.append({"keys": name, "share of keys": float(chosen.mean()), "attention": float(weights[chosen].sum())})
    return rows


def legend(levels: NDArray[Any]) -> str:
    """Colours of the mask picture as HTML, for those levels that occur."""
    chips = ["<b>bright</b>: kept"]
    for level in range(1, int(levels.max()) + 1):
        if (levels == level).any():
            red, green, blue = level_color(level)
            style = (
                f"background:rgb({red},{green},{blue});color:#000;padding:0 .5em;border-radius:.3em;white-space:nowrap"
            )
            chips.append(f"<span style='{style}'>mean of {2**level} keys</span>")
    chips.append("<b>dark, hatched</b>: dropped")
    red, green, blue = OWN_TILE
    outlined = f"outline:2px solid rgb({red},{green},{blue});padding:0 .5em;white-space:nowrap"
    chips.append(f"<span style='{outlined}'>query tile</span>")
    chips.append("<b>white frame</b>: the query patch")
    return " &nbsp; ".join(chips)


def _finish(sheet: FrameSheet, picture: NDArray[Any], own_tile: NDArray[np.bool_], query: Patch) -> Pixels:
    """Outline the query's tile and frame the query patch."""
    pixels: Pixels = picture.clip(0, 255).round().astype(np.uint8)
    inside = sheet.enlarge(own_tile)
    padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    core = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    pixels[inside & ~core] = OWN_TILE
    frame, row, column = query
    top, left, cell = row * sheet.cell, column * sheet.cell, sheet.cell
    for margin, color in ((2, 0), (1, 255), (0, 255)):
        box = np.zeros(pixels.shape[1:3], bool)
        box[max(0, top - margin) : top + cell + margin, max(0, left - margin) : left + cell + margin] = True
        inner = max(0, top + 1 - margin), max(0, left + 1 - margin)
        box[inner[0] : top + cell - 1 + margin, inner[1] : left + cell - 1 + margin] = False
        pixels[frame][box] = color
    return sheet.draw(pixels)
