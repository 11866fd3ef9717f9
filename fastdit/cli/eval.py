"""`fastdit eval`: how close sparse runs are to dense ones, how good the videos are, and how fast."""

from __future__ import annotations

from cyclopts import App

app = App(name="eval", help="Measure fidelity to dense, video quality and speed.")
app.command("fastdit.cli.eval_fidelity:fidelity", name="fidelity")
app.command("fastdit.cli.eval_fidelity:tensors", name="tensors")
app.command("fastdit.cli.eval_quality:quality", name="quality")
app.command("fastdit.cli.eval_vbench:app", name="vbench")
app.command("fastdit.cli.eval_report:report", name="report")
app.command("fastdit.cli.eval_speed:speed", name="speed")
app.command("fastdit.cli.eval_suite:suite", name="suite")
