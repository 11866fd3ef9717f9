"""From the clips of a suite to `suite.json`, `table.md`, the pictures and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastdit.whole_files import whole_file, write_json
from fastdit_eval.clips import read_clip
from fastdit_eval.contact_sheet import draw_contact_sheet
from fastdit_eval.result_files import read_result, result_path
from fastdit_eval.run_contents import mark_front
from fastdit_eval.run_report import write_report
from fastdit_eval.suite.clip_store import DENSE, ClipStore
from fastdit_eval.suite.measurements import Measurement, measure_row, row_summary
from fastdit_eval.suite.table import write_table
from fastdit_eval.suite.tradeoff_plot import plot_tradeoffs

SCHEMA = "suite/1"
SHOWN_CLIPS = 4


def compare_rows(
    store: ClipStore,
    configs: dict[str, dict[str, Any] | None],
    how: Measurement,
    setup: dict[str, Any],
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Measure all rows and write the comparison; what was measured before and has not changed is taken over.

    Args:
        store: The suite; all clips of all rows, and `results/judge-<row>.json` of each, are there.
        configs: Settings of each row as plain data, `None` for dense attention; `dense` first.
        how: What to measure.
        setup: What all clips are made with: `model`, `call`, `seed` and so on.
        progress: Told steps done, steps in all and the name of the current one.

    Returns:
        What `suite.json` holds.
    """
    rows = [row for row in configs if row != DENSE]
    # The noise floor first, because the others quote it.
    rows.sort(key=lambda row: row != how.floor)
    steps = len(rows) * len(how.clips)
    for number, row in enumerate(rows):

        def show(done: int, total: int, clip: str, row: str = row, base: int = number * len(how.clips)) -> None:
            progress(base + done, steps, row)

        measure_row(store, row, how, show)
    summaries = {row: row_summary(store, row, len(how.clips)) for row in configs}
    report = {
        "schema": SCHEMA,
        **setup,
        "num_clips": len(how.clips),
        "convention": "pab" if how.convention == "default" else how.convention,
        "floor": how.floor,
        "rows": {row: {"config": configs[row], **summaries[row]} for row in configs},
        **how.context,
    }
    _mark(report)
    write_json(store.root / "suite.json", report)
    for name, data in (("table.md", write_table(report).encode()), ("tradeoffs.png", plot_tradeoffs(report))):
        with whole_file(store.root / name) as partial:
            partial.write_bytes(data)
    for row in configs:
        _draw_sheet(store, row, how.clips)
    write_report(store.root)
    return report


def _mark(report: dict[str, Any]) -> None:
    """Note for every method whether another one is at least as close to dense and as fast, and better in one."""
    points = [
        {"row": row, "speedup": item["speedup"], "psnr": item["fidelity"].get("psnr_rgb", {}).get("mean")}
        for row, item in report["rows"].items()
        if row not in (DENSE, report["floor"])
    ]
    for point in mark_front(points):
        report["rows"][point["row"]]["pareto"] = point["pareto"]


def _draw_sheet(store: ClipStore, row: str, clips: Sequence[str]) -> None:
    """Write `pictures/<row>.png`: the first clips, of a method below the same dense."""
    strips = []
    rows = [DENSE] if row == DENSE else [DENSE, row]
    fidelity = read_result(result_path(store.root, "fidelity", row)) if row != DENSE else None
    pairs = {} if fidelity is None else {pair["name"]: pair["values"] for pair in fidelity["pairs"]}
    for clip in clips[:SHOWN_CLIPS]:
        for name in rows:
            record = store.read_record(name, clip)
            assert record is not None, "the row is complete"
            wrong = [key for key, right in record["verdicts"].items() if not right]
            title = f"{name}: {record['prompt']}"
            if name == row and "psnr_rgb" in pairs.get(clip, {}):
                title += f", PSNR {pairs[clip]['psnr_rgb']:.1f} dB"
            title += f" (wrong: {', '.join(wrong)})" if wrong else ""
            strips.append((title, read_clip(store.frames(name) / f"{clip}.npz").unit()))
    target = store.root / "pictures" / f"{row}.png"
    target.parent.mkdir(exist_ok=True)
    draw_contact_sheet(strips, target)
