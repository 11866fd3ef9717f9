"""The real package on clips of the bundled model. Opt-in: FASTDIT_VBENCH_PYTHON names the interpreter that has it.

python -m venv /tmp/vbench && /tmp/vbench/bin/pip install --no-deps vbench
/tmp/vbench/bin/pip install torch torchvision decord easydict omegaconf opencv-python-headless tqdm pillow requests
FASTDIT_VBENCH_PYTHON=/tmp/vbench/bin/python pytest tests/eval/test_vbench_official.py
"""

import json
import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from vbench_runs import write_suite

from fastdit.cli import main

PYTHON = os.environ.get("FASTDIT_VBENCH_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="FASTDIT_VBENCH_PYTHON names no interpreter")


def vbench(*words):
    return main(["eval", "vbench", *words])


def flicker(path):
    """1 - mean over frame pairs of mean |difference| / 255: VBench's formula, in float64."""
    frames = iio.imread(path).astype(np.float64)
    return 1 - np.abs(np.diff(frames, axis=0)).mean() / 255


def test_the_official_package_runs_on_clips_of_the_bundled_model(tmp_path, capsys):
    run = tmp_path / "run"
    suite = write_suite(tmp_path / "suite.json", ["temporal_flickering"])
    entry = json.loads(suite.read_text())[0]
    suite.write_text(json.dumps([{**entry, "prompt_en": "a red circle moving left on a dark background"}]))
    assert vbench("doctor", f"--vbench-python={PYTHON}", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dimensions"]["temporal_flickering"]["ready"]
    assert vbench("plan", f"--suite={suite}", f"--output={run}", "--samples=5") == 0
    small = ["--num-inference-steps=4", "--height=48", "--width=48", "--num-frames=9"]
    assert vbench("generate", f"--output={run}", "--model=tiny", *small) == 0
    assert vbench("run", f"--output={run}", f"--vbench-python={PYTHON}") == 0
    data = json.loads((run / "vbench/evaluation_results/temporal_flickering_eval_results.json").read_text())
    score, videos = data["temporal_flickering"]
    assert len(videos) == 5
    ours = [flicker(Path(video["video_path"])) for video in videos]
    for video, value in zip(videos, ours, strict=True):
        assert video["video_results"] == pytest.approx(value, abs=1e-5)
    assert score == pytest.approx(np.mean(ours), abs=1e-5)
    capsys.readouterr()
    assert vbench("score", f"--output={run}") == 1
    assert "static filter" in capsys.readouterr().err
    assert vbench("score", f"--output={run}", "--partial", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dimensions"]["temporal_flickering"]["raw"] == score
    with capsys.disabled():
        print(f"\nvbench {report['vbench']}, torch {report['torch']}: official {score:.9f}, ours {np.mean(ours):.9f}")
