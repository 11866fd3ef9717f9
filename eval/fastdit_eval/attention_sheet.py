"""Pictures of attention: where a query looks, and which key blocks the queries need."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

Array = npt.NDArray[np.float32]
MAX_FRAMES = 9


def draw_patch_map(patch: Array, labels: list[str], title: str, path: Path) -> None:
    """Write a PNG of one layer: a row per head, the attention of one query over evenly spaced frames.

    Args:
        patch: `[H, T, height, width]`; the query is the middle token, marked in its frame.
        labels: One line per head.
        title: Heading.
        path: Target.
    """
    heads, frames, height, width = patch.shape
    middle = frames // 2
    shown = np.unique(np.append(np.linspace(0, frames - 1, min(MAX_FRAMES, frames)).round().astype(int), middle))
    figure = Figure(figsize=(1.1 * len(shown) + 1.8, 1.15 * heads * height / width + 0.8), layout="constrained")
    axes = figure.subplots(heads, len(shown), squeeze=False)
    for head in range(heads):
        # Square root: faint places stay visible beside the peak.
        strength = np.sqrt(patch[head] / max(float(patch[head].max()), 1e-12))
        for column, frame in enumerate(shown):
            axis = axes[head, column]
            axis.imshow(strength[frame], cmap=matplotlib.colormaps["inferno"], vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if head == 0:
                axis.set_title(f"t={frame}", fontsize=8)
            if frame == middle:
                axis.plot(width // 2, height // 2, "+", color="cyan", markersize=6)
        axes[head, 0].set_ylabel(labels[head], fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110, format="png")


def draw_block_maps(maps: list[list[Array]], labels: list[list[str]], title: str, path: Path) -> None:
    """Write a PNG of all heads: sampled queries (down) against key blocks (across).

    Args:
        maps: `[layers][heads]` of `[n, blocks]`.
        labels: Likewise, one heading per map.
        title: Heading.
        path: Target.
    """
    rows, columns = len(maps), max(len(layer) for layer in maps)
    figure = Figure(figsize=(1.9 * columns + 0.6, 2.05 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, layer in enumerate(maps):
        for column, blocks in enumerate(layer):
            axis = axes[row, column]
            strength = np.sqrt(blocks / max(float(blocks.max()), 1e-12))
            axis.imshow(strength, cmap=matplotlib.colormaps["inferno"], vmin=0, vmax=1, aspect="auto")
            axis.set_title(labels[row][column], fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(f"layer {row}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, format="png")
