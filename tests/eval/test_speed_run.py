"""Timing of a random pipeline: what the figures are made of."""

import json

import pytest
import torch

from fastdit.cli import main
from fastdit_eval.stage_times import StageTimer

SMALL = ["--height=32", "--width=48", "--num-frames=9", "--num-inference-steps=2", "--min-tokens=0", "--dense-steps=1"]


@pytest.fixture(scope="module")
def pipe():
    from tests_support import build_tiny_wan

    return build_tiny_wan()


def test_the_timer_times_every_stage_and_leaves_no_trace(pipe):
    hooks = {
        name: (len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in pipe.transformer.named_modules()
    }
    pipe.set_progress_bar_config(disable=True)
    with StageTimer(pipe, layers=True) as timer:
        pipe("a red circle", height=32, width=48, num_frames=5, num_inference_steps=2, generator=torch.manual_seed(0))
    assert set(timer.seconds) == {"text_encoding", "denoising", "decoding", "attention_layers"}
    assert 0 < timer.seconds["attention_layers"] < timer.seconds["denoising"]
    assert "decode" not in vars(pipe.vae)
    after = {
        name: (len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in pipe.transformer.named_modules()
    }
    assert after == hooks


def test_the_command_reports_stages_memory_and_density(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    words = ["eval", "speed", f"--model={tmp_path / 'model'}", "--repeats=2", "--density=0.5", *SMALL]
    assert main([*words, f"--output={tmp_path / 'run'}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "run" / "results" / "speed-adaptive.json").read_text()) == report
    assert (tmp_path / "run" / "results" / "speed-adaptive.png").is_file()
    pairs = zip(*(report["seconds"][kind]["each"] for kind in ("dense", "sparse")), strict=True)
    assert report["speedup_of_each_pair"] == [pytest.approx(a / b) for a, b in pairs]
    for kind in ("dense", "sparse"):
        assert 0 < report["attention_share"][kind] < 1
        assert min(report["stages"][kind].values()) > 0
    parts = report["attention_seconds"]
    assert {name: seconds for name, seconds in parts["dense"].items() if seconds} == {
        "rest of the layers": pytest.approx(sum(parts["dense"].values()))
    }
    assert min(parts["sparse"].values()) > 0
    assert report["selection_share"]["dense"] == report["gather_share"]["dense"] == 0
    assert 0 < report["selection_share"]["sparse"] < report["attention_share"]["sparse"]
    assert (tmp_path / "run" / "results" / "speed-adaptive-attention.png").is_file()
    assert min(report["peak_memory_bytes"].values()) > 2**20
    # Two layers, two steps, one transformer; the first step is dense.
    assert [cell[:2] for cell in report["density_cells"][0]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert [cell[2] for cell in report["density_cells"][0] if cell[1] == 0] == [1, 1]
    assert main(["eval", "report", str(tmp_path / "run")]) == 0
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()
    assert main([*words, "--repeats=0"]) == 2
