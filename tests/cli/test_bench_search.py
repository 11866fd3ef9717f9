"""`fastdit bench search` and `fastdit bench estimator` on a random pipeline, end to end and resumed."""

import inspect
import json

import pytest

from fastdit import Plan
from fastdit.cli import main

SMALL = ["--size=32", "--frames=9", "--steps=2", "--tiles", "8", "4", "--threads=1"]
WORDS = ["a red circle", "a blue square", "a green cross", "a purple triangle", "an orange circle"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def test_figures_are_measured_kept_and_not_measured_twice(model_folder, prompts, tmp_path, capsys, monkeypatch):
    output = tmp_path / "figures"
    words = ["bench", "search", f"--model={model_folder}", f"--prompts={prompts}", f"--output={output}", *SMALL]
    words += ["--calibration=3", "--held-out=2", "--tuning=1", "--promises", "40", "--json"]
    words += ["--densities", "0.3", "0.7", "1.0", "--windows", "1", "--dense-steps", "0.0", "0.5"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((output / "search.json").read_text())
    (row,) = report["promises"]
    assert row["held_out"]["prompts"] == 2
    assert 0 < row["held_out"]["density"] <= 1
    assert row["uniform"]["runs"]
    assert row["saving"] == pytest.approx(1 - row["held_out"]["density"] / row["uniform"]["density"])
    assert row["search"]["dense_runs"] == pytest.approx(sum(row["search"]["parts_in_dense_runs"].values()))
    assert row["search"]["parts_in_dense_runs"].keys() >= {"dense", "measured", "phases", "floor"}
    assert row["meets"].keys() == {"mean", "tail", "cost", "saving"}
    assert Plan.load(output / "plan_40.json").promise == {"min_psnr": 40.0}

    from fastdit.search.runs import SearchRuns

    def refuse(*_, **__):
        raise AssertionError("all runs were made before")

    monkeypatch.setattr(SearchRuns, "_call", refuse)
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)["promises"][0]
    assert again["held_out"] == row["held_out"]
    assert again["uniform"] == row["uniform"]


def test_the_estimator_is_checked_head_by_head(model_folder, prompts, tmp_path, capsys):
    output = tmp_path / "checked"
    words = ["bench", "estimator", f"--model={model_folder}", f"--prompts={prompts}", f"--output={output}", *SMALL]
    assert main([*words, "--items=4", "--plans=1", "--modes", "skip", "adaptive_0.2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["items"]) == 4
    labels = ["relative error of the head", "behind the projection", "with gains of the frames"]
    assert list(report["rank_correlation"])[:3] == labels
    assert all(item["mse"] > 0 for item in report["items"])
    assert report["plans"]["runs"][0]["psnr"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--held-out=9"], "has 5 different prompts: accepted is 17"),
        (["search", "--promises", "30", "--held-out=0"], "held_out=0"),
        (["estimator", "--modes", "nonsense"], "modes has 'nonsense'"),
    ],
)
def test_bad_input_is_one_clear_line(model_folder, prompts, tmp_path, capsys, words, message):
    given = ["bench", *words, f"--model={model_folder}", f"--prompts={prompts}", f"--output={tmp_path / 'out'}", *SMALL]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_modes_that_the_estimator_takes_by_default_are_in_the_ladder():
    from fastdit.cli.bench_search import estimator
    from fastdit.search.ladder import default_ladder

    assert set(inspect.signature(estimator).parameters["modes"].default) <= default_ladder(wide=True).keys()
