"""Quality over density and over speed-up, one line for each kind of method."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdit_eval.suite.clip_store import DENSE

PANELS = (("density", "density over the run, dense steps included"), ("speedup", "speed-up end to end"))
QUALITIES = (("psnr", "PSNR to dense, dB"), ("judge", "judge: videos all right"))


def plot_tradeoffs(report: dict[str, Any]) -> bytes:
    """PSNR and the judge's share over density and over speed-up, as PNG.

    Args:
        report: From `compare_rows`.
    """
    points: dict[str, list[dict[str, Any]]] = {}
    for row, item in report["rows"].items():
        if row not in (DENSE, report["floor"]):
            points.setdefault(_kind(row), []).append(_point(row, item))
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    colors = dict(zip(points, matplotlib.colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]
    for across, (horizontal, x_label) in enumerate(PANELS):
        for down, (vertical, y_label) in enumerate(QUALITIES):
            axis = axes[down, across]
            for kind, group in points.items():
                _draw(axis, kind, group, horizontal, vertical, colors[kind])
            axis.grid(color="0.9")
            axis.margins(x=0.12, y=0.08)
            axis.set_ylabel(y_label if across == 0 else "")
            axis.set_xlabel(x_label if down == 1 else "")
    dense = report["rows"][DENSE]["judge"].get("all")
    for axis in axes[1]:
        axis.set_ylim(0, 1.05)
        if dense is not None:
            axis.axhline(dense, color="0.5", linestyle=":", linewidth=1, label="dense")
    for axis in axes[:, 1]:
        axis.axvline(1, color="0.5", linestyle=":", linewidth=1)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _kind(row: str) -> str:
    """What the points of one line share: the name without its last part, which is the density or the pattern."""
    return row.rsplit("-", 1)[0] if row.startswith(("adaptive", "pyramid")) else row.split("-", 1)[0]


def _point(row: str, item: dict[str, Any]) -> dict[str, Any]:
    psnr = item["fidelity"].get("psnr_rgb")
    return {
        "label": row.split("-", 1)[-1],
        "density": item["density"],
        "speedup": item["speedup"],
        "psnr": None if psnr is None else psnr["mean"],
        "interval": None if psnr is None else psnr["ci95"],
        "judge": item["judge"].get("all"),
    }


def _draw(axis: Axes, kind: str, group: list[dict[str, Any]], across: str, up: str, color: Any) -> None:
    shown = sorted((p for p in group if p[across] is not None and p[up] is not None), key=lambda p: float(p[across]))
    xs, ys = [p[across] for p in shown], [p[up] for p in shown]
    # Only the points of a ladder of densities are joined: patterns and plans are no steps of one thing.
    line = "-" if kind in ("adaptive", "pyramid") else ""
    axis.plot(xs, ys, marker="o", linestyle=line, color=color, label=kind)
    for p in shown:
        if up != "psnr":
            continue  # many shares are equal: the colours must do
        if p["interval"] is not None:
            axis.plot([p[across]] * 2, p["interval"], color=color, linewidth=1, alpha=0.6)
        place = (p[across], p[up])
        axis.annotate(
            p["label"], place, fontsize=7, xytext=(0, 4), textcoords="offset points", color=color, ha="center"
        )
