"""From clips to the table: what each figure is made of."""

import json

import numpy as np
import pytest
from small_suite import CLIPS, ROWS, made_frames, small_maker

from fastdit.environment import describe_environment
from fastdit.whole_files import write_json
from fastdit_eval.result_files import read_result, result_path
from fastdit_eval.suite.clip_store import ClipStore, make_clips
from fastdit_eval.suite.comparison import compare_rows
from fastdit_eval.suite.measurements import Measurement, row_speed

pytest.importorskip("jinja2")
SETUP = {"model": "tiny", "seed": 0, "call": {"num_frames": 4}, "fps": 8}


@pytest.fixture
def store(tmp_path):
    store = ClipStore(tmp_path)
    make_clips(store, ROWS, CLIPS, range(3), small_maker())
    return store


def compare(store, rows=ROWS, clips=CLIPS, metrics=("psnr_rgb", "ssim", "ms_ssim")):
    for row in rows:
        write_json(result_path(store.root, "judge", row), {"shares": {"color": 1.0, "all": 2 / 3}})
    context = {"environment": describe_environment(), "command": "fastdit eval suite"}
    how = Measurement(
        clips=tuple(clips), fps=8, convention="default", metrics=metrics, floor="dense-math", context=context
    )
    configs = {row: None if row.startswith("dense") else {"method": "adaptive"} for row in rows}
    return compare_rows(store, configs, how, SETUP, lambda done, total, name: None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    store = ClipStore(tmp_path_factory.mktemp("suite"))
    make_clips(store, ROWS, CLIPS, range(3), small_maker())
    return store, compare(store)


def test_the_comparison_holds_what_was_measured(compared):
    store, report = compared
    assert json.loads((store.root / "suite.json").read_text()) == report
    row = report["rows"]["adaptive-0.2"]
    psnr = []
    for number in range(3):
        dense, sparse = (np.round(made_frames(name, number) * 255) / 255 for name in ("dense", "adaptive-0.2"))
        psnr.append(np.mean([-10 * np.log10(((a - b) ** 2).mean()) for a, b in zip(dense, sparse, strict=True)]))
    assert row["fidelity"]["psnr_rgb"]["mean"] == pytest.approx(np.mean(psnr), abs=1e-3)
    low, high = row["fidelity"]["psnr_rgb"]["ci95"]
    assert min(psnr) - 1e-3 <= low <= np.mean(psnr) <= high <= max(psnr) + 1e-3
    # Two seconds dense against 1, 2 and 3 seconds.
    assert (row["speedup"], row["speedup_range"], row["num_timed"]) == (1.0, [2 / 3, 2.0], 3)
    assert (row["density"], row["judge"]["all"]) == (0.5, 2 / 3)
    assert "smaller than 176 pixels" in row["unavailable"]["ms_ssim"]
    # Darker clips change less from frame to frame.
    assert row["quality"]["temporal_flickering"]["delta"] == pytest.approx(0.2 / 3, abs=2e-3)
    assert row["comparable_to_vbench"] is False
    assert row["pareto"] is True
    assert "pareto" not in report["rows"]["dense-math"]
    floor = read_result(result_path(store.root, "fidelity", "adaptive-0.2"))["noise_floor"]
    assert floor["run"] == "dense-math"
    assert floor["metrics"]["psnr_rgb"]["mean"] > 45


def test_the_table_and_the_pictures_are_there(compared):
    store, _ = compared
    lines = (store.root / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[:5]] == [
        "| method",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| dense",
        "| dense-math (noise floor)",
        "| adaptive-0.2 *",
    ]
    assert lines[4].startswith("| adaptive-0.2 * | 0.500 | 1.00x | ")
    assert lines[4].endswith(" | - | 1.00 | - | - | 0.67 |")
    assert "ms_ssim: unavailable" in "\n".join(lines)
    for name in ("tradeoffs.png", "pictures/dense.png", "pictures/adaptive-0.2.png", "report.html", "report.md"):
        assert (store.root / name).stat().st_size > 1000, name
    page = (store.root / "report.html").read_text()
    assert "Judge: share of videos that are right" in page
    # Videos of lossless frames are found beside them.
    assert "data:video/mp4" in page
    assert (store.root / "suite.json").stat().st_mode & 0o044


def test_seconds_are_compared_only_within_one_process(store):
    assert row_speed(store, "adaptive-0.2", CLIPS)["density_cells"] == [[[0, 0, 1.0], [1, 0, pytest.approx(0.1)]]]
    store.record_file("adaptive-0.2", CLIPS[0]).unlink()
    make_clips(store, ROWS, CLIPS, range(3), small_maker(process="another"))
    found = row_speed(store, "adaptive-0.2", CLIPS)
    assert (found["num_timed"], found["speedup_of_each_pair"]) == (2, [1.0, 2 / 3])
    found = row_speed(store, "adaptive-0.2", CLIPS[:1])
    assert (found["num_timed"], found["speedup"]) == (0, None)


def test_fewer_clips_may_be_compared_and_rows_without_times(store):
    store.record_file("adaptive-0.2", CLIPS[0]).unlink()
    make_clips(store, ROWS, CLIPS, range(3), small_maker(process="another"))
    report = compare(store, clips=CLIPS[:1])
    row = report["rows"]["adaptive-0.2"]
    assert (row["num_clips"], row["speedup"], row["fidelity"]["ssim"]["ci95"]) == (1, None, None)
    assert "| adaptive-0.2 | 0.500 | - | " in (store.root / "table.md").read_text()
