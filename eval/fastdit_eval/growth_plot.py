"""The picture of a growth bench: time, selection and memory against tokens, on logarithmic axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fastdit_kernels.bench_machine import machine_line

COLOURS = {
    "dense": "black",
    "adaptive": "tab:blue",
    "pyramid": "tab:orange",
    "cached": "tab:green",
    "static": "tab:red",
}


def draw_growth_bench(report: dict[str, Any], path: Path) -> None:
    """Write a PNG with three panels; the exponent of each line is in its legend.

    Args:
        report: What `growth_bench.run_growth_bench` returns.
        path: Target.
    """
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    _draw(panels[0], report, "seconds", "seconds of the operator", 1.0)
    _draw(panels[1], report, "select_seconds", "seconds of the selection in it", 1.0)
    _draw(panels[2], report, "peak_bytes", "peak memory over the inputs, MB", 1e-6)
    settings = report["settings"]
    figure.suptitle(
        f"one layer of {settings['heads']} heads x {settings['head_dim']}, density {settings['density']:g}, "
        f"{settings['dtype']}; {machine_line(report['environment'], with_load=True)}; medians of {settings['repeats']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=110, format="png")


def _draw(axis: Axes, report: dict[str, Any], key: str, label: str, factor: float) -> None:
    ticks: set[int] = set()
    for name, exponents in report["exponents"].items():
        cases = [case for case in report["cases"] if case["name"] == name]
        values = [case["parts_seconds"]["select"] if "parts_seconds" in case else 0.0 for case in cases]
        if key != "select_seconds":
            values = [case[key] for case in cases]
        if not cases or min(values) <= 0:
            continue
        lengths = [case["tokens"] for case in cases]
        ticks |= set(lengths)
        grows = "" if exponents[key] is None else f": tokens^{exponents[key]:.2f}"
        axis.plot(
            lengths, [value * factor for value in values], marker="o", color=COLOURS.get(name), label=f"{name}{grows}"
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sorted(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:.0f}k"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("tokens")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    if ticks:
        axis.legend(fontsize=8)
