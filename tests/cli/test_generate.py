"""The command line on a random pipeline saved to a folder: the path every Diffusers model takes."""

import json
import os
import subprocess
import sys

import imageio.v3 as iio
import pytest

from fastdit.cli import main

SMALL = ["--height=32", "--width=48", "--num-frames=9", "--num-inference-steps=3", "--min-tokens=0", "--dense-steps=1"]
REPORT_KEYS = {
    "model",
    "method",
    "prompt",
    "seed",
    "num_inference_steps",
    "dense_seconds",
    "sparse_seconds",
    "speedup",
    "density",
    "psnr",
    "ssim",
    "environment",
}


def base(model_folder, output, without=()):
    words = [f"--model={model_folder}", "--prompt=a red circle", f"--output={output}"]
    return ["generate", *[word for word in words if word.split("=")[0] not in without]]


def run(model_folder, output, *words):
    return main([*base(model_folder, output), *words])


def test_compare_writes_videos_picture_and_report(model_folder, tmp_path, capsys):
    output = tmp_path / "new" / "demo"
    assert run(model_folder, output, "--compare", "--density", "0.5", *SMALL) == 0
    assert {path.name for path in output.iterdir()} == {"dense.mp4", "sparse.mp4", "compare.png", "report.json"}
    report = json.loads((output / "report.json").read_text())
    assert report.keys() >= REPORT_KEYS
    assert report["num_inference_steps"] == 3
    assert report["method"] == "adaptive"
    assert report["density"] == 1.0  # two tiles in all: the own ones
    assert report["speedup"] == pytest.approx(report["dense_seconds"] / report["sparse_seconds"])
    assert iio.imread(output / "dense.mp4").shape == (9, 32, 48, 3)
    printed = capsys.readouterr().out
    for word in ("seconds", "speed-up", "PSNR", "SSIM", "density over the whole run"):
        assert word in printed


def test_json_goes_to_standard_output(model_folder, tmp_path, capsys):
    assert run(model_folder, tmp_path, "--compare", "--json", "--repeats", "2", *SMALL) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["speedup_of_each_pair"]) == 2
    assert report == json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize("method", ["dense", "adaptive", "pyramid"])
def test_a_single_video(model_folder, tmp_path, method):
    assert run(model_folder, tmp_path, "--method", method, *SMALL) == 0
    assert iio.imread(tmp_path / "video.mp4").shape == (9, 32, 48, 3)
    assert json.loads((tmp_path / "report.json").read_text())["density"] == 1.0


def test_a_static_pattern(model_folder, tmp_path):
    words = ["--method=static", "--pattern=multi_diagonal|sink", *SMALL]
    assert run(model_folder, tmp_path, *words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["pattern"] == "multi_diagonal:1|sink:1"
    assert report["density"] == 1.0  # two tiles in all: the own ones


def test_cached_masks(model_folder, tmp_path):
    words = ["--method=cached", "--refresh-every=2", "--density=0.5", "--order=raster", *SMALL]
    assert run(model_folder, tmp_path, *words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["refresh_every"] == 2
    assert report["config"]["source"]["density"] == 0.5
    assert report["config"]["source"]["order"] == "raster"
    # Layer 0 is dense; one layer, two branches, two sparse steps.
    assert "masks: 2 built, 2 reused" in report["summary"]


def test_a_table_of_heads_from_a_file(model_folder, tmp_path):
    shared = {"q_tile": 4, "kv_tile": 2, "min_tokens": 0, "schedule": {"dense_steps": 1, "dense_layers": []}}
    pyramid = {"method": "pyramid", "num_levels": 3, "level_shares": {"0": 0.2, "1": 0.3}}
    (tmp_path / "heads.json").write_text(
        json.dumps({"method": "mixed", "heads": [[None, 0, "dense"]], "default": pyramid, **shared})
    )
    small = [word for word in SMALL if not word.startswith(("--min-tokens", "--dense-steps"))]
    assert run(model_folder, tmp_path / "out", f"--config={tmp_path / 'heads.json'}", *small) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["method"] == "mixed"
    assert report["config"]["heads"] == [[None, 0, "dense"]]
    assert report["config"]["default"]["level_shares"] == [[0, 0.2], [1, 0.3]]
    assert 0.5 < report["density"] < 1.0


def test_the_same_seed_gives_the_same_video(model_folder, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(model_folder, tmp_path / name, "--seed", seed, "--method", "dense", *SMALL) == 0
    a, b, c = (iio.imread(tmp_path / name / "video.mp4") for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--method=magic"], 2, "accepted are 'dense', 'adaptive'"),
        (["--method", "dense", "--compare"], 2, "choose a sparse method"),
        (["--method=pyramid", "--top-p=0.9"], 2, "method 'pyramid' has no such setting"),
        (["--density=1.5"], 2, "density=1.5: accepted is a fraction"),
        (["--top-p=-1"], 2, "top_p=-1.0"),
        (["--dense-steps=1.5"], 2, "dense_steps=1.5"),
        (
            ["--method=static", "--density=0.5"],
            2,
            "density=0.5: method 'static' has no such setting; its own are pattern",
        ),
        (["--pattern=sink"], 2, "pattern='sink': method 'adaptive' has no such setting; its own are complement"),
        (["--method=static", "--pattern=spiral"], 2, "'spiral' is unknown; accepted are window"),
        (["--method=cached", "--source=static"], 2, "built once anyway"),
        (["--method=cached", "--source=cached"], 2, "source='cached': accepted are 'adaptive'"),
        (["--method=cached", "--pattern=sink"], 2, "method 'adaptive' has no such setting"),
        (["--refresh-every=2"], 2, "refresh_every=2: method 'adaptive' has no such setting"),
        (["--repeats=0"], 2, "repeats=0"),
        (["--fps=0"], 2, "fps=0"),
        (["--num-inference-steps=0"], 2, "num_inference_steps=0"),
        (["--height=33"], 2, "divisible by 16"),
        (["--implementation=triton"], 1, "Triton needs a CUDA device"),
        (["--no-such-flag"], 2, "no-such-flag"),
        (["--model=no/such/model"], 1, "does not exist"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(model_folder, tmp_path, capsys, words, code, message):
    output = tmp_path / "deep" / "output"
    flags = {word.split("=")[0] for word in words}
    # Small unless the case says otherwise, so that a missing check fails fast.
    small = [word for word in SMALL if word.split("=")[0] not in flags]
    assert main([*base(model_folder, output, flags), *small, *words]) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("fastdit: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in captured.err
    assert not (tmp_path / "deep").exists()


def test_an_empty_prompt_is_refused(model_folder, tmp_path, capsys):
    assert main([*base(model_folder, tmp_path, {"--prompt"}), "--prompt= "]) == 2
    assert "prompt is empty" in capsys.readouterr().err


def test_a_folder_that_is_no_model(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out") == 1
    assert "model_index.json is missing" in capsys.readouterr().err
    (tmp_path / "model_index.json").write_text("{not json")
    assert run(tmp_path, tmp_path / "out") == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unsupported_pipeline_is_named(model_folder, tmp_path, capsys, monkeypatch):
    from fastdit_pipelines.wan import WanAdapter

    monkeypatch.setattr(WanAdapter, "transformer_classes", ("SomethingElse",))
    monkeypatch.setattr("diffusers.WanPipeline.__call__", lambda *_, **__: pytest.fail("refuse before running"))
    assert run(model_folder, tmp_path / "out", "--compare", *SMALL) == 1
    message = capsys.readouterr().err
    assert "WanTransformer3DModel is not supported; supported are " in message
    assert "SomethingElse" in message


def test_an_unwritable_output(model_folder, tmp_path, capsys):
    target = tmp_path / "file"
    target.write_text("in the way")
    assert run(model_folder, target / "out", *SMALL) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert target.read_text() == "in the way"


def test_a_failure_keeps_earlier_results(model_folder, tmp_path):
    assert run(model_folder, tmp_path, "--method", "dense", *SMALL) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(model_folder, tmp_path, "--implementation", "triton", *SMALL) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_arguments_and_help():
    command = [sys.executable, "-m", "fastdit.cli"]
    wrong = subprocess.run([*command, "generate"], capture_output=True, text=True, env=os.environ)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("fastdit: error:")
    helped = subprocess.run([*command, "generate", "--help"], capture_output=True, text=True, env=os.environ)
    assert helped.returncode == 0
    for flag in ("--prompt", "--model", "--method", "--compare", "--density", "--json"):
        assert flag in helped.stdout


def test_models_lists_families_and_bundled_models(capsys):
    assert main(["models"]) == 0
    assert "WanTransformer3DModel" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "WanVACETransformer3DModel" in listed["families"]["wan"]
    assert set(listed["families"]) >= {"cogvideox", "hunyuan_video", "hunyuan_video15", "ltx", "mochi", "wan"}
    assert "tiny" in listed["bundled"]
