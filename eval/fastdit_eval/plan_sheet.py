"""A plan as a picture: density by layer and head, one map per phase, and the front it was taken from."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastdit import Plan
from fastdit.errors import OutputError

COLORS = matplotlib.colormaps["viridis"]
LETTERS = {"dense": "", "adaptive": "a", "pyramid": "p", "static": "s"}
# Larger maps have no room for letters.
MOST_LETTERS = 400


def mode_letters(plan: Plan) -> dict[str, str]:
    """What stands for each mode in its cells: a letter for the method, nothing for dense."""
    return {
        name: LETTERS.get(mode if isinstance(mode, str) else mode["method"], "?") for name, mode in plan.modes.items()
    }


def draw_plan(plan: Plan, path: Path) -> None:
    """Write the picture.

    Args:
        plan: What to draw.
        path: PNG file.

    Raises:
        OutputError: It cannot be written.
    """
    rows, columns = len(plan.transformers), len(plan.phases)
    figure = Figure(figsize=(3.2 * columns + 4.2, max(3.2, 3.0 * rows)), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1.0] * columns + [1.3])
    letters = mode_letters(plan)
    start = 0.0
    for column, phase in enumerate(plan.phases):
        for row, (density, modes) in enumerate(zip(phase.density, phase.modes, strict=True)):
            axis = figure.add_subplot(grid[row, column])
            image = axis.imshow(np.array(density), vmin=0, vmax=1, cmap=COLORS, aspect="auto")
            if len(density) * len(density[0]) <= MOST_LETTERS:
                for layer, names in enumerate(modes):
                    for head, name in enumerate(names):
                        color = "black" if density[layer][head] > 0.6 else "white"
                        axis.text(head, layer, letters[name], ha="center", va="center", color=color, fontsize=8)
            axis.set_title(f"steps {start:.0%} to {phase.until:.0%}", fontsize=9)
            axis.set_xlabel("head")
            for direction in (axis.xaxis, axis.yaxis):
                direction.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.set_ylabel("layer" if rows == 1 else f"transformer {row}, layer")
        start = phase.until
    figure.colorbar(image, ax=figure.axes, location="left", label="density", shrink=0.8)
    axis = figure.add_subplot(grid[:, columns])
    axis.plot([point.cost for point in plan.front], [point.error for point in plan.front], ".-", color="tab:gray")
    axis.plot([plan.predicted_cost], [plan.predicted_error], "o", color="tab:red", label="this plan")
    axis.set_yscale("log")
    axis.set_xlabel("cost, of dense attention")
    axis.set_ylabel("predicted mean squared error")
    axis.legend(fontsize=8)
    models = ", ".join(one.class_name for one in plan.transformers)
    figure.suptitle(f"{models}; letters: a adaptive, p pyramid, s static, none dense", fontsize=9)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutputError(f"picture {str(path)!r} cannot be written: {error.strerror}") from error
