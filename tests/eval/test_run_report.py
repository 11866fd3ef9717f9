"""The report of a run folder."""

import json
import re

import numpy as np
import pytest

from fastdit.cli import main
from fastdit.whole_files import write_json
from fastdit_eval.result_files import result_path
from fastdit_eval.run_contents import mark_front

pytest.importorskip("jinja2")


@pytest.fixture
def run(tmp_path):
    """A comparison of `generate`, and a measured speed and quality of another method."""
    folder = tmp_path / "pyramid"
    folder.mkdir()
    for side in ("dense", "sparse"):
        (folder / f"{side}.mp4").write_bytes(side.encode())
    report = {"method": "pyramid", "psnr": 31.0, "ssim": 0.95, "speedup": 1.2, "density": 0.4, "prompt": "<b>red</b>"}
    (folder / "report.json").write_text(json.dumps({**report, "environment": {"torch": "2"}, "command": "fastdit a"}))
    frames = np.random.default_rng(0).random((3, 40, 40, 3), dtype=np.float32)
    np.save(tmp_path / "d.npy", frames)
    np.save(tmp_path / "s.npy", (frames * 0.9).astype(np.float32))
    words = [f"--dense={tmp_path / 'd.npy'}", f"--sparse={tmp_path / 's.npy'}", f"--output={tmp_path}", "--name=fast"]
    assert main(["eval", "fidelity", *words, "--metrics", "psnr_rgb", "ms_ssim"]) == 0
    assert main(["eval", "quality", *words, "--fps=8"]) == 0
    speed = {"method": "adaptive", "speedup": 1.5, "density": 0.3, "density_cells": [[[0, 0, 1.0], [1, 0, 0.2]]]}
    speed["stages"] = {"dense": {"denoising": 2.0}, "sparse": {"denoising": 1.0}}
    write_json(result_path(tmp_path, "speed", "fast"), speed)
    return tmp_path


def test_the_page_holds_everything_and_needs_nothing_else(run, capsys):
    capsys.readouterr()
    assert main(["eval", "report", str(run), "--json"]) == 0
    files = {path.rsplit("/", 1)[1] for path in json.loads(capsys.readouterr().out)["files"]}
    assert {
        "report.html",
        "report.md",
        "report-pareto.png",
        "report-density-fast-0.png",
        "report-worst-fast.png",
    } <= files
    page = (run / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', page)
    assert len(sources) >= 5
    assert all(source.startswith("data:") for source in sources)
    assert "&lt;b&gt;red" in page
    assert "<b>red" not in page
    for text in ("pyramid", "fast", "1.50", "ms_ssim unavailable", "fastdit a", "temporal_flickering"):
        assert text in page
    text = (run / "report.md").read_text()
    assert "| pyramid * | 1.20 | 0.400 | 31.00 | 0.9500 |" in text
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_the_front_is_what_nobody_beats_in_both():
    values = [(1.0, 40.0), (1.5, 30.0), (1.4, 29.0), (1.5, 20.0), (None, 50.0)]
    rows = mark_front([{"speedup": speedup, "psnr": psnr} for speedup, psnr in values])
    assert [row["pareto"] for row in rows] == [True, True, False, False, False]


def test_an_empty_or_damaged_folder_is_refused(tmp_path, capsys):
    assert main(["eval", "report", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err
    result_path(tmp_path, "speed", "a").parent.mkdir()
    result_path(tmp_path, "speed", "a").write_text("{")
    assert main(["eval", "report", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
