"""Pieces of the page as HTML: progress, figures, notes. Everything that comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from fastdit_ui.jobs import JobView

Row = tuple[str, str]
CHART_WIDTH, CHART_HEIGHT = 600, 120
# Below this share of a core a run was held up by others.
LEAST_CORE_SHARE = 0.8


def progress(view: JobView | None) -> str:
    """Where a job stands: its place in the queue, or step, time and time to go; empty for no job."""
    if view is None:
        return ""
    if view.status == "waiting":
        before = "1 job is" if view.ahead == 1 else f"{view.ahead} jobs are"
        return _bar(f"In the queue: {before} before yours" if view.ahead else "In the queue: yours is next", None)
    if view.status == "running":
        text, share = view.label, None
        if view.total:
            text += f": step {view.step} of {view.total}"
            share = view.step / view.total
        text += f", {_seconds(view.seconds)} so far"
        if view.eta is not None:
            text += f", about {_seconds(view.eta)} to go"
        return _bar(text, share)
    ends = {"done": "Done", "failed": "Not done", "cancelled": "Cancelled"}
    return f'<div class="fd-status" role="status">{ends[view.status]} after {_seconds(view.seconds)}.</div>'


def hint(text: str) -> str:
    """What will be seen in a place that is empty yet."""
    return f'<div class="fd-hint">{escape(text)}</div>'


def problem(message: str) -> str:
    """What went wrong and what to do, in the place of the progress."""
    return f'<div class="fd-problem" role="alert">{escape(message)}</div>'


def _bar(text: str, share: float | None) -> str:
    now = "" if share is None else f' aria-valuenow="{share * 100:.0f}"'
    width = 100 if share is None else share * 100
    kind = "fd-bar fd-bar-open" if share is None else "fd-bar"
    return (
        f'<div class="fd-status" role="status">{escape(text)}</div>'
        f'<div class="{kind}" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"{now}>'
        f'<div style="width:{width:.1f}%"></div></div>'
    )


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 100 else f"{int(value // 60)} min {int(value % 60):02d} s"


def table(rows: Iterable[Row], caption: str) -> str:
    """Names and values."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<table class="fd-table"><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>'


def notes(lines: Sequence[str]) -> str:
    """Remarks, one a line; empty for none."""
    if not lines:
        return ""
    return '<ul class="fd-notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def preformatted(text: str) -> str:
    """A text table."""
    return f'<pre class="fd-pre" tabindex="0">{escape(text)}</pre>'


def figures(report: dict[str, Any], name: str) -> str:
    """The figures of a run."""
    size = report["settings"]
    rows = [
        ("Method", f"{report['title']} ({report['method']})"),
        ("Seed used", str(report["seed"])),
        ("Size", f"{size['width']} x {size['height']} pixels, {size['num_frames']} frames"),
        ("Steps", str(report["num_inference_steps"])),
    ]
    if report.get("tokens"):
        rows.append(("Tokens", f"{report['tokens']:,}"))
    if "speedup" in report:
        ssim = "not defined at this size" if report["ssim"] is None else f"{report['ssim']:.4f}"
        reused = " (an earlier dense run of the same settings)" if report["dense_run_reused"] else ""
        rows += [
            ("Speed-up, end to end", f"{report['speedup']:.2f}x"),
            ("Seconds dense", f"{report['dense_seconds']:.2f}{reused}"),
            ("Seconds sparse", f"{report['sparse_seconds']:.2f}"),
            ("PSNR against dense", f"{report['psnr']:.2f} dB"),
            ("SSIM against dense", ssim),
        ]
    else:
        rows.append(("Seconds", f"{report['seconds']:.2f}"))
    rows += [("Density, whole run", f"{report['density']:.3f}"), ("In the library", name)]
    return table(rows, "Comparison" if "speedup" in report else "Run")


def remarks(report: dict[str, Any]) -> list[str]:
    """What a user should know about a run beside its figures."""
    lines = list(report["notes"])
    if report["config"] is not None and report["density"] == 1.0:
        least = report["config"].get("min_tokens", 0)
        if report.get("tokens") and report["tokens"] < least:
            lines.append(
                f"Nothing was skipped: {report['tokens']:,} tokens are fewer than min_tokens = {least:,}, below which "
                "skipping does not pay. Take a larger or longer video, or lower min_tokens in the expert panel."
            )
        else:
            lines.append("Nothing was skipped: every step was dense. The details say why.")
    if "speedup" in report:
        lines.append("Seconds are of one run each, on this machine as it was loaded then.")
        known = (report.get(f"{kind}_core_share") for kind in ("dense", "sparse"))
        shares = [share for share in known if share is not None]
        if len(shares) == 2 and min(shares) < LEAST_CORE_SHARE:
            lines.append(
                f"The machine was busy with other work: the dense run had {shares[0]:.0%} of a core and the sparse one "
                f"{shares[1]:.0%}. These seconds and the speed-up mean nothing; run it again on a quiet machine."
            )
    return lines


def density_chart(values: Sequence[float] | None) -> str:
    """Density of each denoising step as bars; empty for dense runs."""
    if not values:
        return ""
    width = CHART_WIDTH / len(values)
    bars = "".join(
        f'<rect x="{i * width + 1:.1f}" y="{CHART_HEIGHT * (1 - value):.1f}" width="{max(1.0, width - 2):.1f}" '
        f'height="{CHART_HEIGHT * value:.1f}"><title>step {i + 1}: {value:.3f}</title></rect>'
        for i, value in enumerate(values)
    )
    spoken = ", ".join(f"step {i + 1} {value:.2f}" for i, value in enumerate(values))
    return (
        '<figure class="fd-chart"><figcaption>Density by denoising step (1 is dense)</figcaption>'
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" preserveAspectRatio="none" '
        f'aria-label="Density by step: {spoken}">{bars}</svg>'
        f'<div class="fd-axis"><span>step 1</span><span>step {len(values)}</span></div></figure>'
    )
