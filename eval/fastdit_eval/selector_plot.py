"""The picture of a comparison of selectors: error against density, a panel for each group of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 5
BASELINE_MARKERS = "x+1234|_"
OUR_MARKERS = "osD^vP*"


def draw_selector_bench(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: mean relative output error over measured density, both logarithmic.

    Own methods are full lines, baselines dashed ones, the oracle black. The first panel is the mean over groups, at
    the density asked for, where a selector reached it in every group. Answers far from all densities asked for are
    left out of the picture.

    Args:
        report: What `selector_bench.run_selector_bench` returns.
        path: Target.
    """
    groups = list(report["groups"])
    columns = min(COLUMNS, len(groups) + 1)
    rows = -(-(len(groups) + 1) // columns)
    figure = Figure(figsize=(3.5 * columns + 2.2, 3.1 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten().tolist()
    styles = _styles(report["selectors"])
    asked = report["settings"]["densities"]
    limits = (min(asked) * 0.75, max(asked) * 1.25)
    for selector in report["selectors"]:
        name = selector["name"]
        means = [(float(asked), error) for asked, error in report["mean_error"][name].items() if error is not None]
        _draw_line(axes[0], means, styles[name])
        for axis, group in zip(axes[1:], groups, strict=False):
            cases = [case for case in report["cases"] if case["selector"] == name and case["group"] == group]
            points = [(case["density"], case["error"]) for case in cases]
            _draw_line(axis, [point for point in points if limits[0] <= point[0] <= limits[1]], styles[name])
    for axis, title in zip(axes, ["mean of groups", *groups], strict=False):
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(*limits)
        axis.grid(alpha=0.3)
    axes[0].set_xticks(asked, [f"{density:g}" for density in asked], minor=False)
    axes[0].set_xticks([], minor=True)
    for axis in axes[len(groups) + 1 :]:
        axis.set_visible(False)
    figure.supxlabel("density", fontsize=10)
    figure.supylabel("relative output error, mean over rows", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    settings = report["settings"]
    shape = next(iter(report["groups"].values()))["shape"]
    figure.suptitle(
        f"{shape[2]} tokens, head_dim {shape[3]}, {shape[1]} head(s) a group, "
        f"tiles {settings['q_tile']} x {settings['kv_tile']}, fp32 against dense",
        fontsize=10,
    )
    figure.savefig(path, dpi=100, format="png")


def _styles(selectors: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    styles: dict[str, dict[str, Any]] = {}
    ours = baselines = 0
    for selector in selectors:
        style: dict[str, Any] = {"label": selector["name"], "markersize": 4}
        if selector["kind"] == "oracle":
            style |= {"color": "black", "linewidth": 1.2, "linestyle": ":", "marker": "."}
        elif selector["kind"] == "ours":
            style |= {"color": f"C{ours}", "linewidth": 1.6, "marker": OUR_MARKERS[ours % len(OUR_MARKERS)]}
            ours += 1
        else:
            marker = BASELINE_MARKERS[baselines % len(BASELINE_MARKERS)]
            style |= {"color": f"C{9 - baselines % 10}", "linewidth": 0.9, "linestyle": "--", "marker": marker}
            baselines += 1
        styles[selector["name"]] = style
    return styles


def _draw_line(axis: Axes, points: list[tuple[float, float]], style: dict[str, Any]) -> None:
    """Points by density; a selector that answers the same for several densities shows one point."""
    ordered = sorted(dict(points).items())
    axis.plot([x for x, _ in ordered], [y for _, y in ordered], **style)
