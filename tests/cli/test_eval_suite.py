"""`fastdit eval suite` on a random pipeline: rows, resuming, processes that share the prompts."""

import json

import pytest
from launched import run_in_two_processes

from fastdit.cli import main
from fastdit.config import CachedConfig
from fastdit_eval.clips import read_clip

pytest.importorskip("jinja2")
SMALL = ["--height=128", "--width=128", "--num-frames=17", "--num-inference-steps=2", "--fps=8"]
ROWS = ["--methods", "adaptive-0.5", "--densities", "0.5"]
WORDS = ["--num-prompts=2", "--min-tokens=0", "--dense-steps=1", "--metrics", "psnr_rgb", "ssim", *ROWS, *SMALL]


def suite(folder, output, *more):
    return ["eval", "suite", f"--model={folder}", f"--output={output}", *WORDS, *more]


def test_one_process_resumed_and_two_that_share(model_folder, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(suite(model_folder, one, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["rows"]) == ["dense", "dense-math", "adaptive-0.5"]
    row = report["rows"]["adaptive-0.5"]
    assert 0.5 < row["density"] < 1
    assert (row["num_timed"], row["num_clips"]) == (2, 2)
    assert set(row["judge"]) >= {"object", "color", "shape", "direction", "all"}
    assert row["config"]["schedule"]["dense_steps"] == 1
    stamps = {path: path.stat().st_mtime_ns for path in one.rglob("*.npz")}
    assert len(stamps) == 6
    # A method more: what is there stays, and the table has both.
    assert main(suite(model_folder, one, "--json", "--no-floor", "--patterns", "frames:1", "--methods", "static")) == 0
    assert list(json.loads(capsys.readouterr().out)["rows"]) == [
        "dense",
        "static-frames-1",
        *list(report["rows"])[:0:-1],
    ]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert main(suite(model_folder, one, "--guidance-scale=1")) == 2
    assert "holds a run with other settings" in capsys.readouterr().err

    run_in_two_processes(*suite(model_folder, two, "--no-floor"))
    files = {path.relative_to(two): path for path in two.rglob("*.npz")}
    assert len(files) == 4
    for name, path in files.items():
        assert (read_clip(path).frames == read_clip(one / name).frames).all(), name
    records = [json.loads(path.read_text()) for path in (two / "records" / "dense").iterdir()]
    assert len({record["process"] for record in records}) == 2
    shared = json.loads((two / "suite.json").read_text())["rows"]["adaptive-0.5"]
    for key in ("fidelity", "quality", "judge", "density"):
        assert shared[key] == row[key], key
    assert (shared["num_timed"], shared["num_processes"]) == (2, 2)


def listed(capsys, *words):
    assert main(["eval", "suite", "--list", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_have_the_models_defaults_and_one_name_each(capsys, monkeypatch):
    rows = listed(capsys)
    kinds = {row.split("-")[0] for row in rows}
    assert kinds == {"static", "adaptive", "pyramid", "cached", "plan"}
    assert {"plan-tiny_psnr_26", "plan-tiny_psnr_30"} <= rows.keys()
    assert [rows[f"pyramid-{density}"]["density"] for density in (0.1, 0.2, 0.4)] == [0.1, 0.2, 0.4]
    assert len({json.dumps(config) for config in rows.values()}) == len(rows)
    exact = rows["cached-exact-0.2"]
    assert (exact["mass"], exact["source"]["density"]) == ("exact", 0.2)
    assert rows["cached-pyramid-0.2"]["source"]["method"] == "pyramid"
    assert set(listed(capsys, "--methods", "cached", "adaptive-0.1")) == {
        *(row for row in rows if row.startswith("cached")),
        "adaptive-0.1",
    }
    # What a model says of a method goes into every row of it, also where another method is its source.
    defaults = {
        "pyramid": {"dense_steps": 2, "q_samples": 8},
        "cached": {"dense_steps": 3, "refresh_every": 4, "source": "pyramid", "density": 0.3},
    }
    monkeypatch.setattr(
        "fastdit_pipelines.bundled_models.method_defaults", lambda model, method: defaults.get(method, {})
    )
    rows = listed(capsys)
    assert rows["pyramid-0.4"]["q_samples"] == 8
    assert rows["pyramid-0.4"]["schedule"]["dense_steps"] == 2
    for name, source in (("cached-pyramid-0.2", "pyramid"), ("cached-default", "pyramid")):
        assert rows[name]["source"]["method"] == source
        assert (rows[name]["refresh_every"], rows[name]["schedule"]["dense_steps"]) == (4, 3)
    assert rows["cached-default"]["source"]["density"] == 0.3
    assert rows["cached-exact-0.2"]["refresh_every"] == CachedConfig().refresh_every


def test_bundled_plans_are_rows_at_their_own_size_alone(capsys):
    listed_plans = listed(capsys, "--methods", "plan", "--plan", "tiny_psnr_30")
    assert {row.split("-")[0] for row in listed_plans} == {"plan"}
    assert not any(row.startswith("plan") for row in listed(capsys, "--num-frames=29"))


def test_files_become_rows(capsys, tmp_path):
    from plans import make_plan

    file = tmp_path / "my heads.json"
    file.write_text('{"method": "pyramid", "density": 0.3}')
    make_plan([[[["dense", "dense"], ["little", "dense"]]]]).save(tmp_path / "p.json")
    rows = listed(capsys, "--methods", "static", "--config", str(file), "--plan", str(tmp_path / "p.json"))
    assert rows["config-my-heads"]["density"] == 0.3
    assert rows["plan-p"]["method"] == "plan"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "magic"], "methods: 'magic': accepted are adaptive, cached, plan, pyramid, static"),
        (["--num-prompts=0"], "num_prompts=0"),
        (["--densities", "1.5"], "density=1.5"),
        (["--metrics", "beauty"], "metric 'beauty'"),
        (["--patterns", "radial", "radial|"], "pattern"),
        (["--plan", "none.json"], "none.json"),
        (["--two-objects=2"], "two_objects=2"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, tmp_path, words, message):
    assert main(["eval", "suite", f"--output={tmp_path / 'out'}", *words]) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
