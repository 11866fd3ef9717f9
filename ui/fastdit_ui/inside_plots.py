"""Plots of a recorded run: density by layer, head and phase; recall and age of masks over the steps."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from fastdit_ui.frame_sheet import Pixels

Table = NDArray[np.float32]
DENSITY_COLORS = matplotlib.colormaps["viridis"].with_extremes(bad="0.85")
# Larger maps have no room for numbers.
MOST_NUMBERS = 128


def plot_density(density: Table, ends: Sequence[float], name: str) -> Figure:
    """Density of each head (across) of each layer (down), one map per phase; grey where the transformer did not run.

    Args:
        density: `[phases, layers, heads]`.
        ends: Ends of the phases as shares of the run.
        name: The transformer.
    """
    phases, layers, heads = density.shape
    height = min(9.0, max(2.6, 1.4 + 0.24 * layers))
    figure = Figure(figsize=(min(16.0, 1.2 + 2.6 * phases), height), layout="constrained")
    axes = figure.subplots(1, phases, squeeze=False, sharey=True)[0]
    start = 0.0
    for axis, table, end in zip(axes, density, ends, strict=True):
        image = axis.imshow(table, vmin=0, vmax=1, cmap=DENSITY_COLORS, aspect="auto")
        if layers * heads <= MOST_NUMBERS:
            for (layer, head), value in np.ndenumerate(table):
                if not np.isnan(value):
                    color = "black" if value > 0.6 else "white"
                    text = f"{value:.2f}".lstrip("0") or "0"
                    axis.text(head, layer, text, ha="center", va="center", color=color, fontsize=8)
        axis.set_title(f"steps {start:.0%} to {end:.0%}", fontsize=9)
        axis.set_xlabel("head")
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        start = end
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes.tolist(), label="density", shrink=0.9)
    figure.suptitle(f"{name}: attention scores computed, of dense", fontsize=10)
    return figure


def plot_steps(recall: Table, age: Table, layer: int, name: str) -> Figure:
    """Recall of masks over the steps, and their age.

    Args:
        recall: `[steps, layers, heads]`, NaN in dense calls.
        age: `[steps, layers]`, likewise.
        layer: Whose heads are drawn one by one.
        name: The transformer.
    """
    steps = np.arange(len(recall))
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    with warnings.catch_warnings():
        # Dense steps have no recall to take the mean of.
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, least = np.nanmean(recall, axis=(1, 2)), np.nanmin(recall, axis=(1, 2))
        oldest, youngest = np.nanmax(age, axis=1), np.nanmin(age, axis=1)
    for head in range(recall.shape[2]):
        label = f"heads of layer {layer}" if head == 0 else None
        top.plot(steps, recall[:, layer, head], "-", color="tab:blue", alpha=0.35, linewidth=1, label=label)
    top.plot(steps, mean, "o-", color="black", markersize=3, label="mean of all heads")
    top.plot(steps, least, "v--", color="tab:red", markersize=3, label="least of all heads")
    top.set_ylim(0, 1.03)
    top.set_ylabel("recall")
    bottom.step(steps, oldest, where="mid", color="tab:red", label="oldest mask")
    bottom.step(steps, youngest, where="mid", color="0.5", linestyle="--", label="newest mask")
    bottom.set_ylabel("age, steps")
    bottom.set_ylim(-0.3, max(1.0, float(np.nan_to_num(oldest).max())) + 0.3)
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_xlabel("denoising step")
    for axis in (top, bottom):
        shade_dense(axis, np.asarray(np.isnan(age).all(axis=1)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="best")
    figure.suptitle(f"{name}: attention on kept keys (level 0) of sampled rows; shaded: dense steps", fontsize=10)
    return figure


def shade_dense(axis: Any, dense: NDArray[np.bool_]) -> None:
    """Shade the steps in which every call was dense."""
    for step in np.flatnonzero(dense):
        axis.axvspan(step - 0.5, step + 0.5, color="0.88", linewidth=0, zorder=0)


def picture(figure: Figure) -> Pixels:
    """A figure as pixels, for components that show images and carry a text for screen readers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    buffer.seek(0)
    pixels: Pixels = np.asarray(Image.open(buffer).convert("RGB"))
    return pixels
