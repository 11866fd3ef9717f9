import json

import imageio.v3 as iio
import pytest
import torch

from fastdit import VideoGrid
from fastdit.capture import CapturedCall, save_calls
from fastdit.cli import main
from fastdit_eval.selector_bench import measure

SMALL = ["bench", "selectors", "--quick", "--tiles", "16", "8"]


def test_it_writes_figures_and_a_picture_of_synthetic_heads(tmp_path, capsys):
    words = [*SMALL, "--families", "frame", "local", "--grid", "3", "5", "6", "--json", "--output", str(tmp_path)]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "selectors.json").read_text()) == printed
    assert list(printed["groups"]) == ["frame", "local"]
    names = {selector["name"] for selector in printed["selectors"]}
    assert {"adaptive", "oracle", "random", "PSA"} <= names
    assert len(printed["cases"]) == 2 * len(names) * 3
    assert iio.imread(tmp_path / "selectors.png").std() > 5


def test_it_compares_captured_heads_and_prints_tables(tmp_path, capsys):
    rng = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(2, 64, 16, generator=rng) for name in ("query", "key", "value")}
    grid = VideoGrid(frames=4, height=4, width=4)
    path = tmp_path / "heads.pt"
    save_calls([CapturedCall(transformer=0, layer=5, step=1, branch="0", grid=grid, **tensors)], path)
    assert main([*SMALL, "--captured", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "layer 5" in printed
    assert "SVG1" in printed
    assert "theirs" in printed


def test_a_stopped_measurement_goes_on(tmp_path, capsys, monkeypatch):
    words = [*SMALL, "--families", "frame", "local", "--grid", "3", "5", "6", "--json", "--output", str(tmp_path)]
    measured, stop_after = [], 5

    def counted(task, selector, density, repeats):
        if len(measured) == stop_after:
            raise KeyboardInterrupt
        measured.append((task.heads.name, selector.name, density))
        return measure(task, selector, density, repeats)

    monkeypatch.setattr("fastdit_eval.selector_bench.measure", counted)
    assert main(words) != 0
    assert [path.name for path in tmp_path.iterdir()] == ["selectors.cases"]
    stop_after = None

    def fails(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("fastdit_eval.selector_plot.draw_selector_bench", fails)
        assert main(words) != 0
    in_all = len(measured)
    assert main(words) == 0
    assert len(measured) == in_all
    report = json.loads(capsys.readouterr().out)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["selectors.json", "selectors.png"]
    # Selectors are kept when all of their densities are done: three of the first, two of the second.
    done = [(case["group"], case["selector"], case["asked"]) for case in report["cases"]]
    assert measured == done[:5] + done[3:]
    assert main([*words, "--repeats", "2"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recapture", "--check"], "exclude each other"),
        (["--tiles", "60", "30"], "multiples of 8"),
        (["--repeats", "0"], "repeats=0"),
        (["--families", "odd"], "'local', 'temporal'"),
        (["--captured", "missing.pt"], "missing.pt"),
    ],
)
def test_wrong_usage_is_one_clear_line(capsys, words, message):
    assert main(["bench", "selectors", *words]) == 2
    assert message in capsys.readouterr().err
