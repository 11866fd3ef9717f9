"""`fastdit inspect` on a random pipeline."""

import json

import imageio.v3 as iio
import pytest

from fastdit.attention_profile import KINDS
from fastdit.cli import main

SMALL = ["--height=32", "--width=48", "--num-frames=9", "--num-inference-steps=3"]


def test_it_writes_figures_and_pictures_of_every_head(model_folder, tmp_path, capsys):
    words = ["inspect", f"--model={model_folder}", f"--output={tmp_path}", "--rows=6", "--block=4", *SMALL]
    assert main([*words, "--steps", "0", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "attention.json").read_text())
    assert report["steps"] == [0, 2]
    assert [(head["layer"], head["head"]) for head in report["heads"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for head in report["heads"]:
        assert head["kind"] in KINDS
        assert 0 < head["keys_for_95"] <= 1
        assert 0 <= head["entropy"] <= 1
        assert head["distance"].keys() == set("thw")
        assert len(head["stability"]) == 1
        assert [step["step"] for step in head["steps"]] == [0, 2]
    for name in ("blocks.png", "layer_0.png", "layer_1.png"):
        picture = iio.imread(tmp_path / name)
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 5

    assert main(words) == 0
    assert "entropy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--steps", "3"], "accepted are steps from 0 to 2"), (["--rows=1"], "rows=1"), (["--block=0"], "block=0")],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(model_folder, tmp_path, capsys, words, message):
    output = tmp_path / "out"
    assert main(["inspect", f"--model={model_folder}", f"--output={output}", *SMALL, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not output.exists()
