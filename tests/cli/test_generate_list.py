"""`fastdit generate --prompts` in one process and under `accelerate launch`, and `--plan`."""

import json

import imageio.v3 as iio
import pytest
from launched import run_in_two_processes
from plans import make_plan

from fastdit.cli import main

PROMPTS = ["a red circle", "a blue square", "a green star"]
SMALL = ["--height=32", "--width=48", "--num-frames=5", "--num-inference-steps=2"]
SPARSE = ["--min-tokens=0", "--dense-steps=1"]


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("list")
    (path / "model").symlink_to(model_folder)
    (path / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n")
    return path


def words(folder, output, *more):
    return ["generate", f"--model={folder / 'model'}", f"--output={output}", *SMALL, *more]


def listed(folder, output, *more):
    return words(folder, output, f"--prompts={folder / 'prompts.txt'}", *SPARSE, *more)


def test_processes_share_a_list(folder, tmp_path, capsys):
    assert main(listed(folder, tmp_path / "one", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["made"] == [0, 1, 2]
    done = run_in_two_processes(*listed(folder, tmp_path / "two"))
    assert "process 1 of 2: made 2 videos, 0 were there" in done.stdout
    assert "process 2 of 2: made 1 videos, 0 were there" in done.stdout
    names = {f"{number:04d}.{kind}" for number in range(3) for kind in ("mp4", "json")} | {"run.json"}
    for output in (tmp_path / "one", tmp_path / "two"):
        assert {path.name for path in output.iterdir()} == names
    for number, prompt in enumerate(PROMPTS):
        one, two = (iio.imread(tmp_path / name / f"{number:04d}.mp4") for name in ("one", "two"))
        assert one.shape == (5, 32, 48, 3)
        assert (one == two).all()
        record = json.loads((tmp_path / "two" / f"{number:04d}.json").read_text())
        assert record["prompt"] == prompt


def test_a_stopped_run_goes_on(folder, tmp_path, capsys):
    assert main(listed(folder, tmp_path, "--json")) == 0
    capsys.readouterr()
    whole = (tmp_path / "0001.mp4").read_bytes()
    (tmp_path / "0001.mp4").write_bytes(whole[:100])  # cut off
    (tmp_path / "0002.json").unlink()  # killed before the video was noted
    kept = (tmp_path / "0000.mp4").stat().st_mtime_ns
    assert main(listed(folder, tmp_path, "--json")) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["made"], done["skipped"]) == ([1, 2], [0])
    assert (tmp_path / "0001.mp4").read_bytes() == whole
    assert (tmp_path / "0000.mp4").stat().st_mtime_ns == kept
    assert main(listed(folder, tmp_path, "--seed=1")) == 2
    assert "holds a run with other settings" in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text("something else\n")
    assert main(words(folder, tmp_path, f"--prompts={other}", *SPARSE)) == 2
    assert "number 0 of another prompt, 'a red circle'" in capsys.readouterr().err


def test_a_plan(folder, tmp_path, capsys):
    from diffusers import WanPipeline

    from fastdit.adapters import find_adapter
    from fastdit.plan_config import identify

    transformer = WanPipeline.from_pretrained(folder / "model").transformer
    identity = identify(transformer, find_adapter(transformer).sites(transformer))
    tables = [[[["dense", "dense"], ["little", "dense"]]]]
    grid = {"frames": 2, "height": 2, "width": 3, "text_length": 0}
    make_plan(tables, [identity], grid=grid).save(tmp_path / "plan.json")
    assert main(words(folder, tmp_path / "out", "--prompt=a", f"--plan={tmp_path / 'plan.json'}")) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["method"] == "plan"
    assert 0.5 < report["density"] <= 1.0
    assert "plan" in report["config"]

    make_plan(tables).save(tmp_path / "other.json")
    capsys.readouterr()
    for command in (words(folder, tmp_path / "no", "--prompt=a"), ["judge", f"--model={folder / 'model'}", *SMALL]):
        assert main([*command, f"--plan={tmp_path / 'other.json'}"]) == 1
        assert "transformers.0.class_name: the plan is for Some" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give one of --prompt and --prompts"),
        (["--prompt=a", "--prompts=b"], "give one of --prompt and --prompts"),
        (["--prompts=missing.txt"], "prompts='missing.txt' cannot be read"),
        (["--prompts=missing.txt", "--compare"], "compare one --prompt at a time"),
        (["--prompt=a", "--plan=p.json", "--density=0.2"], "density=0.2 with --plan: the plan says all settings"),
        (["--prompt=a", "--plan=p.json", "--method=static"], "method='static' with --plan"),
        (["--prompt=a", "--plan=p.json", "--config=c.json"], "config with --plan"),
    ],
)
def test_bad_input(folder, tmp_path, capsys, more, message):
    assert main(words(folder, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
