"""The plans that ship with the bundled model: they fit it, they kept their promise, and their names do for files."""

import json
from pathlib import Path

import pytest

import fastdit
from fastdit.cli import main
from fastdit.cli.generate import call_arguments
from fastdit.errors import PlanError
from fastdit.fidelity import measure_fidelity
from fastdit_pipelines.bundled_models import BUNDLED_MODELS, model_plans, plan_file
from fastdit_pipelines.generation import GenerationSettings, compare
from fastdit_pipelines.loading import load_pipeline

PLANS = model_plans("tiny")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny")


def test_there_is_one_for_each_promise():
    assert {"tiny_psnr_26", "tiny_psnr_30", "tiny_psnr_34", "tiny_speedup_6_144"} <= PLANS.keys()


@pytest.mark.parametrize("name", sorted(PLANS))
def test_it_fits_the_model_and_kept_its_promise(pipe, name):
    plan = fastdit.Plan.load(PLANS[name])
    kind, amount = name.split("_")[1:3]
    if kind == "psnr":
        assert plan.keeps_promise
        assert plan.promise == {"min_psnr": float(amount)}
    else:
        assert plan.promise == {kind: float(amount)}
        assert plan.predicted_cost <= 1 / float(amount)
        assert plan.measured["psnr"] >= 30
    fastdit.enable(pipe, plan).close()


@pytest.mark.slow
def test_its_run_is_as_sparse_and_as_close_to_dense_as_promised(pipe):
    call, _ = call_arguments("tiny", {})
    prompt = "a red circle moving left on a dark background"
    plan = fastdit.Plan.load(PLANS["tiny_psnr_26"])
    result = compare(pipe, GenerationSettings(prompt=prompt, **call), plan)
    assert measure_fidelity(result.dense_frames, result.sparse_frames).psnr >= 25
    assert result.density == pytest.approx(plan.measured["density"], rel=0.1)


def test_names_do_for_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert plan_file(Path("tiny_psnr_30")) == PLANS["tiny_psnr_30"]
    assert main(["plan", "show", "tiny_psnr_30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["promise"] == {"min_psnr": 30.0}
    # A file of the user's comes first.
    Path("tiny_psnr_30").write_text("{}")
    assert plan_file(Path("tiny_psnr_30")) == Path("tiny_psnr_30")
    with pytest.raises(PlanError, match="cannot be read"):
        fastdit.Plan.load(plan_file(Path("tiny_psnr_99")))


def test_models_without_plans_have_none():
    assert model_plans("some/folder") == {}
    assert set(BUNDLED_MODELS["tiny"].plans) == set(PLANS)
