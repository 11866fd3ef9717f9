"""The picture of a kernel bench: speed over kept tiles against density, beside the best dense kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdit_kernels.bench_machine import machine_line

# Published dense forward figures: (head_dim, TFLOPS, what, card, source). Not measured here.
PUBLISHED = (
    (64, 497, "FA3 fp16", "H100 SXM", "flash-attention README, 16k"),
    (128, 648, "FA3 fp16", "H100 SXM", "flash-attention README, 16k"),
    (128, 702, "cuDNN 9.19 bf16", "H200", "cudnn-frontend results, 16k"),
)
COLUMNS = 3


def draw_kernel_bench(report: dict[str, Any], path: Path) -> None:
    """Write a PNG with one panel for each shape: TFLOPS over kept tiles, and dense TFLOPS as a line.

    Published figures of other people's cards are drawn for CUDA only, and named as such.

    Args:
        report: What `fastdit_kernels.bench.run_bench` returns.
        path: Target.
    """
    panels = list(dict.fromkeys((case["model"], case["dtype"]) for case in report["cases"]))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    environment = report["environment"]
    unit, factor = ("TFLOPS", 1.0) if environment["device_type"] == "cuda" else ("GFLOPS", 1e3)
    for axis, (model, dtype) in zip(axes, panels, strict=False):
        cases = [case for case in report["cases"] if (case["model"], case["dtype"]) == (model, dtype)]
        _draw_panel(axis, cases, factor)
        if environment["device_type"] == "cuda":
            _draw_published(axis, cases[0]["shape"][-1])
        axis.set_title(f"{model}, {dtype}", fontsize=9)
        axis.set_xlabel("density")
        axis.set_ylabel(f"{unit} over kept tiles")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(
        f"{machine_line(environment, with_load=True)}; medians of {report['repeats']} runs, bars: range of the ratio",
        fontsize=9,
    )
    figure.savefig(path, dpi=110, format="png")


def _draw_panel(axis: Axes, cases: list[dict[str, Any]], factor: float) -> None:
    for uneven, label in ((False, "even rows"), (True, "uneven rows")):
        chosen = [case for case in cases if case["uneven_rows"] == uneven]
        if not chosen:
            continue
        densities = [case["density"] for case in chosen]
        speeds = [case["sparse_kept_tflops"] * factor for case in chosen]
        # The range of the paired ratios, carried over to the speed.
        spread = [
            [
                max(0.0, y * (1 - case["speedup_range"][0] / case["speedup"]))
                for y, case in zip(speeds, chosen, strict=True)
            ],
            [
                max(0.0, y * (case["speedup_range"][1] / case["speedup"] - 1))
                for y, case in zip(speeds, chosen, strict=True)
            ],
        ]
        axis.errorbar(densities, speeds, yerr=spread, marker="o", markersize=3, capsize=2, label=f"sparse, {label}")
    dense = sorted(case["best_dense_tflops"] * factor for case in cases)[len(cases) // 2]
    axis.axhline(dense, color="black", linewidth=1, label=f"best dense: {cases[0]['best_dense']}")


def _draw_published(axis: Axes, head_dim: int) -> None:
    for dim, tflops, what, card, source in PUBLISHED:
        if dim == head_dim:
            label = f"published: {what}, {card} ({source})"
            axis.axhline(tflops, color="gray", linestyle=":", linewidth=1, label=label)
