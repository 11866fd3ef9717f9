"""Pictures of a run: quality over speed-up, density over layers and steps, time by stage."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def plot_pareto(rows: Sequence[dict[str, Any]]) -> bytes | None:
    """PSNR over speed-up with the front, as PNG; `None` without a row that has both.

    Args:
        rows: With `name`, `speedup`, `psnr` (dB), `density`, `pareto`.
    """
    points = [row for row in rows if row["speedup"] is not None and row["psnr"] is not None and not row.get("is_floor")]
    if not points:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    front = sorted((row for row in points if row["pareto"]), key=lambda row: row["speedup"])
    axis.plot([row["speedup"] for row in front], [row["psnr"] for row in front], "--", color="0.6", zorder=1)
    axis.scatter([row["speedup"] for row in points], [row["psnr"] for row in points], zorder=2)
    for row in points:
        density = "" if row["density"] is None else f" ({row['density']:.2f})"
        place = (row["speedup"], row["psnr"])
        axis.annotate(row["name"] + density, place, fontsize=8, xytext=(4, 4), textcoords="offset points")
    axis.axvline(1, color="0.8", linewidth=1)
    axis.set_xlabel("speed-up end to end against dense")
    axis.set_ylabel("PSNR to dense, dB")
    axis.set_title("dashed: not beaten in both; in brackets: density over the run", fontsize=9)
    return _png(figure)


def plot_density(cells: Sequence[tuple[int, int, float]], title: str) -> bytes:
    """Density of each layer and step as PNG; places without a call stay white.

    Args:
        cells: Layer, step and density.
        title: Heading.
    """
    layers, steps = sorted({cell[0] for cell in cells}), sorted({cell[1] for cell in cells})
    table = np.full((len(layers), len(steps)), np.nan)
    for layer, step, density in cells:
        table[layers.index(layer), steps.index(step)] = density
    figure = Figure(figsize=(6, 1.2 + 0.2 * len(layers)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for ticks, values in ((axis.set_xticks, steps), (axis.set_yticks, layers)):
        shown = np.unique(np.linspace(0, len(values) - 1, min(12, len(values))).round().astype(int))
        ticks(shown, [str(values[place]) for place in shown])
    axis.set_xlabel("denoising step")
    axis.set_ylabel("layer")
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, label="density")
    return _png(figure)


def plot_stages(stages: dict[str, dict[str, float]], title: str) -> bytes:
    """Seconds of each stage, dense beside sparse, as PNG.

    Args:
        stages: Seconds by kind of run and stage.
        title: Heading.
    """
    figure = Figure(figsize=(6, 1.4 + 0.5 * len(stages)), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(name for row in stages.values() for name in row))
    done = np.zeros(len(stages))
    for name in names:
        seconds = np.array([row.get(name, 0.0) for row in stages.values()])
        axis.barh(list(stages), seconds, left=done, label=name)
        done += seconds
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
