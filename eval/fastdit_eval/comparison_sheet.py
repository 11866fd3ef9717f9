"""The picture of a comparison: frames of both videos and their difference as a heat-map."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

MAX_FRAMES = 6


def draw_comparison(dense: npt.NDArray[np.float32], sparse: npt.NDArray[np.float32], title: str, path: Path) -> None:
    """Write a PNG with rows dense, sparse and |difference| over evenly spaced frames.

    Args:
        dense: `[F, H, W, 3]` in [0, 1].
        sparse: Likewise.
        title: Heading with the figures.
        path: Target.
    """
    shown = np.unique(np.linspace(0, len(dense) - 1, min(MAX_FRAMES, len(dense))).round().astype(int))
    difference = np.abs(dense - sparse).mean(-1)
    # One scale for all frames; a floor keeps a tiny difference from looking dramatic.
    top = max(0.1, float(difference[shown].max()))
    height, width = dense.shape[1:3]
    # Agg explicitly through Figure: no global backend is touched, no display is needed.
    figure = Figure(figsize=(2.0 * len(shown) + 1.2, 2.0 * 3 * height / width + 1.0), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False)
    colors = matplotlib.colormaps["inferno"]
    for column, frame in enumerate(shown):
        axes[0, column].imshow(dense[frame].clip(0, 1))
        axes[1, column].imshow(sparse[frame].clip(0, 1))
        heat = axes[2, column].imshow(difference[frame], cmap=colors, vmin=0, vmax=top)
        axes[0, column].set_title(f"frame {frame}", fontsize=9)
    for row, label in enumerate(("dense", "sparse", "|difference|")):
        axes[row, 0].set_ylabel(label)
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.colorbar(heat, ax=axes[2, :].tolist(), fraction=0.02, label="mean over RGB")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, format="png")
