"""Picture and table of a search: its verified plans, their front, and what the measurements predict."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from fastdit import Plan
from fastdit_ui.search_store import SearchView

Row = list[Any]


def round_rows(view: SearchView) -> list[Row]:
    """One row for each round, see `search_store.ROUND_HEADERS`."""
    rounds, request = view.progress.rounds, view.request
    rows = []
    for number, one in enumerate(rounds, 1):
        found = {"min_psnr": one.psnr, "min_ssim": one.ssim}.get(request.aim)
        complete = one.runs >= view.progress.verified_runs
        kept = "" if found is None else "running" if not complete else "kept" if found >= request.value else "not kept"
        ssim = "" if one.ssim is None else f"{one.ssim:.4f}"
        front = "yes" if on_front(one, rounds) else ""
        rows.append([number, one.digest, f"{one.density:.3f}", f"{one.psnr:.2f}", ssim, one.runs, kept, front])
    return rows


def on_front(one: Any, rounds: Any) -> bool:
    """Whether no other round has at most its density and at least its PSNR, and is better in one of both."""
    mine = (one.density, -one.psnr)
    others = [(other.density, -other.psnr) for other in rounds]
    return not any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in others)


def plot_search(view: SearchView) -> Figure:
    """Left: quality over density of the verified plans. Right: predicted error over cost, all of the front."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_rounds(left, view)
    _plot_prediction(right, view)
    return figure


def _plot_rounds(axis: Any, view: SearchView) -> None:
    rounds, request, progress = view.progress.rounds, view.request, view.progress
    front = sorted((one for one in rounds if on_front(one, rounds)), key=lambda one: one.density)
    axis.plot([one.density for one in front], [one.psnr for one in front], "-", color="0.6", zorder=1, label="front")
    axis.scatter([one.density for one in rounds], [one.psnr for one in rounds], zorder=2, label="verified plan")
    for number, one in enumerate(rounds, 1):
        axis.annotate(str(number), (one.density, one.psnr), xytext=(5, 4), textcoords="offset points", fontsize=8)
    if view.plan is not None and {"psnr", "density"} <= view.plan.measured.keys():
        place = view.plan.measured["density"], view.plan.measured["psnr"]
        axis.scatter(*place, s=140, facecolors="none", edgecolors="tab:red", linewidths=1.8, label="the plan", zorder=3)
    if request.aim == "min_psnr":
        axis.axhline(
            request.value, color="tab:green", linestyle="--", linewidth=1, label=f"promise {request.value:g} dB"
        )
    if request.aim == "density":
        axis.axvline(request.value, color="tab:green", linestyle="--", linewidth=1, label=f"budget {request.value:g}")
    floor = progress.noise_floor_psnr
    title = "no plan verified yet" if not rounds else "round by round"
    axis.set_title(title if floor is None else f"{title}; noise floor {floor:.1f} dB", fontsize=9)
    axis.set_xlabel("density over the run")
    axis.set_ylabel("PSNR to dense, dB")
    axis.set_xlim(0, 1)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _plot_prediction(axis: Any, view: SearchView) -> None:
    plan = latest_plan(view)
    if plan is None:
        done, of = view.progress.measured
        phases, all_phases = view.progress.phases
        axis.set_axis_off()
        text = f"measured {done} of {of} prompts\nweighed {phases} of {all_phases} phases"
        axis.text(0.5, 0.5, text if of else "not begun", ha="center", va="center", transform=axis.transAxes)
        return
    axis.plot(
        [p.cost for p in plan.front],
        [max(p.error, 1e-12) for p in plan.front],
        ".-",
        color="0.6",
        label="predicted front",
    )
    plans = list(view.plans.values())
    axis.plot(
        [p.predicted_cost for p in plans], [max(p.predicted_error, 1e-12) for p in plans], "o", label="verified plan"
    )
    if view.plan is not None:
        place = [view.plan.predicted_cost], [max(view.plan.predicted_error, 1e-12)]
        axis.plot(*place, "o", markersize=12, fillstyle="none", color="tab:red", label="the plan")
    axis.set_yscale("log")
    axis.set_xlabel("cost, of dense attention")
    axis.set_ylabel("predicted mean squared error")
    axis.set_title("allocations that the measurements allow", fontsize=9)
    axis.legend(fontsize=8)


def latest_plan(view: SearchView) -> Plan | None:
    """The result, or any verified plan: all of a search have the same front."""
    return view.plan or next(iter(view.plans.values()), None)
