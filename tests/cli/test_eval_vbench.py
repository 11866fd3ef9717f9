"""`fastdit eval vbench` on a random pipeline: one process and two make the same files."""

import json
import os
import subprocess
import sys

import pytest
from launched import run_in_two_processes
from vbench_runs import write_suite

from fastdit.cli import main

SMALL = ["--height=32", "--width=48", "--num-frames=5", "--num-inference-steps=2", "--fps=8"]
SPARSE = ["--method=adaptive", "--min-tokens=0", "--dense-steps=0"]


def vbench(*words):
    return main(["eval", "vbench", *words])


@pytest.fixture
def suite(tmp_path):
    return write_suite(tmp_path / "suite.json", ["scene"])


def test_the_plan_is_printed_and_written(suite, tmp_path, capsys):
    words = ["plan", f"--suite={suite}", f"--output={tmp_path / 'run'}"]
    assert vbench(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_clips"] == 5
    assert report["dimensions"] == {"scene": [1, 5]}
    assert vbench(*words) == 0
    assert "5 clips to make" in capsys.readouterr().out
    assert vbench(*words, "--seed=1") == 2
    assert "holds another plan" in capsys.readouterr().err


def _python(*words):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.slow
def test_two_processes_make_the_files_of_one(model_folder, suite, tmp_path, capsys):
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        assert vbench("plan", f"--suite={suite}", f"--output={run}", "--samples=4") == 0
    words = ["-m", "fastdit.cli", "eval", "vbench", "generate", f"--model={model_folder}", *SMALL, *SPARSE, "--json"]
    capsys.readouterr()
    alone = _python(*words, f"--output={runs[0]}")
    assert json.loads(alone.stdout.splitlines()[-1])["made"] == 4
    done = run_in_two_processes(*words[2:], f"--output={runs[1]}")
    tallies = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted((tally["rank"], tally["made"], tally["elsewhere"]) for tally in tallies) == [(0, 2, 0), (1, 2, 0)]
    files = [{path.name: path.read_bytes() for path in (run / "videos").iterdir()} for run in runs]
    assert sorted(files[0]) == [f"a cat, scene-{index}.mp4" for index in range(4)]
    assert files[0] == files[1]
    assert len(set(files[0].values())) == 4
    record = json.loads((runs[1] / "records" / "00003.json").read_text())
    assert (record["seed"], record["num_frames"], record["fps"]) == (3, 5, 8)
    assert 0 < record["density"] <= 1
    with pytest.MonkeyPatch.context() as patch:
        writes = []
        patch.setattr(sys.stdout, "write", writes.append)
        assert main([*words[2:], f"--output={runs[0]}"]) == 0
    # Another process may write between two writes, so a line and its end are one.
    assert [json.loads(text)["kept"] for text in writes if text.endswith("}\n")] == [4]
    assert main([*words[2:], f"--output={runs[0]}", "--guidance-scale=1"]) == 2
    assert "holds clips of other settings" in capsys.readouterr().err


def test_bad_input_is_one_clear_line(suite, tmp_path, capsys):
    run = f"--output={tmp_path / 'run'}"
    plan = tmp_path / "plan.json"
    for words, code, message in (
        (["generate", run], 2, "manifest"),
        (["generate", run, f"--plan={plan}", "--method=adaptive"], 2, "leave them out"),
        (["generate", run, "--method=magic"], 2, "accepted are 'dense'"),
        (["generate", run, "--batch=0"], 2, "batch=0"),
        (["score", run], 2, "manifest"),
        (["pack", run, "--target=x.tar"], 2, "ends in .zip"),
        (["doctor", f"--vbench-python={tmp_path / 'no'}"], 2, "cannot be started"),
        (["run", run, "--vbench-python=python", "--mode=other"], 2, "mode='other'"),
        (["plan", run, f"--suite={tmp_path / 'none.json'}"], 2, "cannot be read"),
        (["plan", run, f"--suite={suite}", "--benchmark=vbench-3"], 2, "accepted are 'vbench'"),
    ):
        assert vbench(*words) == code, words
        captured = capsys.readouterr()
        assert message in captured.err, words
        assert captured.out == ""
