"""`fastdit doctor`: the machine, and lengths of models that are not there."""

import json
import subprocess
import sys

import pytest
from plans import make_plan

from fastdit.cli import main


def doctor(capsys, *words):
    assert main(["doctor", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_machine(capsys):
    report = doctor(capsys)
    assert report["implementations"]["torch"] is None
    assert report["implementations"][report["auto"]] is None
    assert report["dense_backends"]["native"] is None
    assert report["dense_backends"]["xformers"] is None or "xformers" in report["dense_backends"]["xformers"]
    assert report["environment"]["packages"]["torch"]
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("accelerator:", "cores", "diffusers 0", "auto takes", "dense backends"):
        assert word in printed


def test_a_released_model(capsys):
    words = ["--model=wan-14b", "--density=0.2", "--card=h100", "--dense-steps=0.2"]
    report = doctor(capsys, *words)
    assert report["latent_grid"] == [21, 45, 80]
    assert report["tokens"] == 75_600
    assert (report["video_tokens_mod_q_tile"], report["q_tiles"], report["kv_tiles"]) == (80, 591, 1182)
    assert report["token_pair_mask_bytes"] == pytest.approx(5.7e9, rel=0.01)
    assert report["density_sparse_heads"] == [pytest.approx(0.2, abs=0.001)] * 2
    # One layer of 40 and ten steps of 50 are dense.
    step = 0.2 * 39 / 40 + 1 / 40
    assert report["density_sparse_step"][0] == pytest.approx(step, abs=0.001)
    assert report["density_run"][0] == pytest.approx(0.8 * step + 0.2, abs=0.001)
    assert report["attention_flops_dense"] == pytest.approx(117e12 * 40, rel=0.01)
    assert 0.6 < report["attention_share_of_flops"] < 0.8
    assert report["estimate"]["is_estimate"] is True
    low, high = report["estimate"]["run_speedup"]
    assert 1 < low == high < report["estimate"]["attention_speedup"][0] < 1 / step
    assert main(["doctor", *words]) == 0
    printed = capsys.readouterr().out
    for word in ("estimate", "720 x 1280 x 81", "75,600 tokens", "10 of 50 steps dense", "should pay"):
        assert word in printed


def test_it_says_where_sparse_attention_would_not_pay(capsys):
    short = doctor(capsys, "--model=tiny", "--num-frames=9", "--card=cpu")
    assert short["advice"].startswith("would not pay: 720 tokens are fewer than min_tokens=2048")
    assert short["density_run"] == [1.0, 1.0]
    full = doctor(capsys, "--model=ltx-2b", "--density=1.0", "--card=h100")
    assert full["advice"].startswith("would not pay: by the estimate")


def test_sizes_that_the_pipeline_changes(capsys):
    report = doctor(capsys, "--model=wan22-5b", "--height=720", "--card=a100", "--method=pyramid")
    assert report["size_changes"] == ["height 720 becomes 704, a multiple of 32"]
    assert report["tokens"] == 27_280


def test_timings_of_this_machine(capsys, tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"cases": [{"speedup": 4.0, "density": 0.2}]}))
    report = doctor(capsys, "--model=mochi", "--density=0.2", f"--bench={bench}")
    assert report["estimate"]["kernel_efficiency"] == pytest.approx(0.8)
    assert report["estimate"]["step_speedup"] is None  # nobody has said how fast matrix products are
    assert report["estimate"]["attention_speedup"][0] > 1


def test_a_plan(capsys, tmp_path):
    table = [[["dense", "much", "little", "much"]] * 6]
    make_plan([table], grid={"frames": 29, "height": 12, "width": 12, "text_length": 0}).save(tmp_path / "plan.json")
    report = doctor(capsys, "--model=tiny", f"--plan={tmp_path / 'plan.json'}")
    assert report["density_run"] == [0.5, 0.5]
    assert "measured" in report["density_source"]
    assert main(["doctor", "--model=mochi", f"--plan={tmp_path / 'plan.json'}"]) == 2
    assert "plan is for (layers, heads) [(6, 4)], mochi has [(48, 24)]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--height=480"], 2, "height=480 without a model"),
        (["--density=0.2"], 2, "without a model"),
        (["--model=wan-1.3b", "--height=481"], 2, "accepts multiples of 16 pixels: take 480 or 496"),
        (["--model=wan-1.3b", "--card=voodoo"], 2, "card='voodoo': accepted are h100"),
        (["--model=wan-1.3b", "--num-inference-steps=0"], 2, "num_inference_steps=0"),
        (["--model=wan-1.3b", "--method=dense"], 2, "accepted are 'adaptive'"),
        (["--model=wan-1.3b", "--plan=no.json"], 1, "plan 'no.json' cannot be read"),
        (["--model=wan-9b"], 1, "model 'wan-9b' is unknown"),
    ],
)
def test_bad_input(capsys, words, code, message):
    assert main(["doctor", *words]) == code
    assert message in capsys.readouterr().err


def test_lengths_need_neither_diffusers_nor_transformers():
    program = (
        "import sys; from fastdit.cli import main; main(['doctor', '--model=wan-14b', '--card=h100']); "
        "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
