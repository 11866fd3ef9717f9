import pytest
import torch

from fastdit.capture import load_calls
from fastdit.cli import main

SMALL = ["--height=32", "--width=48", "--num-frames=9", "--num-inference-steps=3"]


def test_it_writes_a_file_of_chosen_calls(model_folder, tmp_path, capsys):
    path = tmp_path / "heads.pt"
    words = ["bench", "capture", f"--model={model_folder}", f"--output={path}", *SMALL]
    assert main([*words, "--prompts", "dance monkey", "monkey", "--steps", "0", "2", "--layers", "1"]) == 0
    assert "4 calls of 2 heads, 18 tokens" in " ".join(capsys.readouterr().out.split())
    calls = load_calls(path)
    assert [(call.layer, call.step) for call in calls] == [(1, 0), (1, 2)] * 2
    assert not calls[0].query.equal(calls[2].query)


def test_it_keeps_chosen_heads_in_fewer_bytes(model_folder, tmp_path):
    whole, small = tmp_path / "heads.pt", tmp_path / "small.pt"
    words = ["bench", "capture", f"--model={model_folder}", *SMALL, "--prompts", "dance", "--steps", "0"]
    assert main([*words, f"--output={whole}"]) == 0
    assert main([*words, f"--output={small}", "--heads", "1", "--dtype", "float16"]) == 0
    for all_heads, one in zip(load_calls(whole), load_calls(small), strict=True):
        for name in ("query", "key", "value"):
            kept = getattr(one, name)
            assert kept.dtype == torch.float16
            assert torch.equal(kept, getattr(all_heads, name)[1:].half())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3"], "from 0 to 2"),
        (["--layers", "2"], "from 0 to 1"),
        (["--heads", "2"], "from 0 to 1"),
        (["--dtype", "int8"], "float16"),
    ],
)
def test_bad_input_is_one_clear_line(model_folder, tmp_path, capsys, words, message):
    output = tmp_path / "heads.pt"
    assert main(["bench", "capture", f"--model={model_folder}", f"--output={output}", *SMALL, *words]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
