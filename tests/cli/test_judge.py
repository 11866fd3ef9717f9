"""`fastdit judge`: made and existing videos, resuming, VBench's formats, errors."""

import dataclasses
import json
import re

import imageio.v3 as iio
import pytest
from launched import run_in_two_processes

from fastdit.cli import main
from fastdit_pipelines.generation import write_video
from fastdit_pipelines.tiny.suite import build_suite, draw_samples, shares, vbench_results
from fastdit_pipelines.tiny.world import SceneSampler, is_held_out, render

SPARSE = ["--min-tokens=0", "--dense-steps=0"]
SMALL = ["--height=32", "--width=32", "--num-frames=5", "--num-inference-steps=1"]
MAIN = {"object", "color", "shape", "direction", "all"}


def judge(*words):
    return main(["judge", *words])


def test_samples_repeat_by_seed_and_are_held_out():
    samples = draw_samples(150, 7, 0.2)
    assert samples[:120] == draw_samples(120, 7)
    assert sum(sample.two_objects for sample in samples) == 30
    assert len({sample.name for sample in samples if not sample.two_objects}) == 120
    for sample in samples[:20]:
        color, shape, direction = re.match(r"an? (\w+) (\w+) moving (?:slowly |quickly )?(\w+)", sample.prompt).groups()
        assert is_held_out(shape, color, direction)


def test_the_suite_speaks_vbench():
    (entry,) = build_suite(["a red circle moving left above a blue cross moving right on a dark background"] * 2)
    assert entry.keys() == {"prompt_en", "dimension", "auxiliary_info"}
    assert entry["auxiliary_info"]["color"] == {"color": "red and blue"}
    assert entry["auxiliary_info"]["relation"]["relation"]["object_b"] == "blue cross"
    assert "relation" in entry["dimension"]


def test_results_speak_vbench():
    results = [
        {"video_path": "a.mp4", "verdicts": {"color": True, "all": False}, "scores": {"color": 0.9}},
        {"video_path": "b.mp4", "verdicts": {"color": False, "all": False, "relation": True}, "scores": {}},
    ]
    assert shares(results) == {"color": 0.5, "relation": 1.0, "all": 0.0}
    score, videos = vbench_results(results)["color"]
    assert score == 0.5
    assert videos[0] == {"video_path": "a.mp4", "video_results": True, "video_score": 0.9}


@pytest.mark.slow
def test_a_run_resumes_and_a_method_is_added(tmp_path, capsys, monkeypatch):
    words = ["--num-prompts=3", "--two-objects=0.34", f"--output={tmp_path}", "--json", *SMALL]
    assert judge(*words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["dense"].keys() >= MAIN
    assert "relation" not in first["dense"]
    assert first["dense_two_objects"].keys() >= MAIN
    videos = sorted(path.name for path in (tmp_path / "videos" / "dense").iterdir())
    suite = json.loads((tmp_path / "suite.json").read_text())
    assert videos == sorted(f"{entry['prompt_en']}-0.mp4" for entry in suite)
    results = json.loads((tmp_path / "dense_eval_results.json").read_text())
    assert iio.imread(tmp_path / "dense_contact_sheet.png").shape[1] == 630
    assert len(results["all"][1]) == 3

    # One result is lost; only that video is made again, and the run ends with the same figures.
    lost = next((tmp_path / "results" / "dense").iterdir())
    content = lost.read_text()
    lost.unlink()
    made = []
    from fastdit_pipelines.tiny import judge_run

    real = judge_run.generate
    monkeypatch.setattr(judge_run, "generate", lambda *args: made.append(1) or real(*args))
    assert judge(*words, "--method=adaptive", *SPARSE) == 0
    second = json.loads(capsys.readouterr().out)
    assert len(made) == 4
    assert lost.read_text() == content
    assert second["dense"] == first["dense"]
    assert second["adaptive"].keys() == first["dense"].keys()

    assert judge(*words, "--guidance-scale=1.5") == 2
    assert "holds a run with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_the_prompts(tmp_path, capsys):
    words = ["--num-prompts=3", "--two-objects=0.34", "--json", "--method=adaptive", *SPARSE, *SMALL]
    assert judge(*words, f"--output={tmp_path / 'one'}") == 0
    alone = json.loads(capsys.readouterr().out)
    done = run_in_two_processes("judge", *words, f"--output={tmp_path / 'two'}")
    tables = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # Who ends last prints; both do where they end together.
    assert tables
    for name in ("dense", "dense_two_objects", "adaptive"):
        assert tables[0][name] == alone[name]
    results = [sorted((tmp_path / run / "results" / "adaptive").iterdir()) for run in ("one", "two")]
    assert [path.name for path in results[0]] == [path.name for path in results[1]]
    assert [path.read_text() for path in results[0]] == [path.read_text() for path in results[1]]


def test_processes_need_a_folder(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert judge("--num-prompts=2") == 2
    assert "output is missing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three right videos and one of another colour than its name says."""
    folder = tmp_path_factory.mktemp("clips")
    sampler = SceneSampler(2, two_object_share=0.0)
    for number in range(4):
        scene = sampler.sample()
        shown = scene
        if number == 3:
            other = "blue" if scene.objects[0].color != "blue" else "red"
            shown = dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], color=other),))
        write_video(render(shown, 9, 96, 96).permute(0, 2, 3, 1).numpy(), folder / f"{scene.caption}-0.mp4", 8)
    return folder


def test_existing_videos_are_judged_by_their_names(clips, tmp_path, capsys):
    assert judge(f"--videos={clips}", "--json", f"--output={tmp_path}") == 0
    table = json.loads(capsys.readouterr().out)["videos"]
    assert (table["color"], table["shape"], table["direction"], table["all"]) == (0.75, 1.0, 1.0, 0.75)
    assert json.loads((tmp_path / "videos_eval_results.json").read_text())["color"][0] == 0.75
    assert judge(f"--videos={clips}") == 0
    printed = capsys.readouterr().out
    assert "0.750" in printed
    assert "direction" in printed


def test_prompts_may_come_from_a_file(clips, tmp_path, capsys):
    wrong = "a red cross moving left on a dark background"
    file = tmp_path / "prompts.json"
    names = [path.name for path in clips.glob("*.mp4")]
    for content in (dict.fromkeys(names, wrong), [{"prompt_en": wrong, "video_list": names}]):
        file.write_text(json.dumps(content))
        assert judge(f"--videos={clips}", f"--prompts={file}", "--json") == 0
        assert json.loads(capsys.readouterr().out)["videos"]["all"] == 0.0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--num-prompts=0"], 2, "num_prompts=0"),
        (["--two-objects=1.5"], 2, "two_objects=1.5"),
        (["--method=magic"], 2, "accepted are 'dense', 'adaptive'"),
        (["--videos=/no/such/folder"], 2, "accepted is a folder with .mp4 files"),
        (["--prompts=x.json"], 2, "give --videos too"),
        (["--model=no/such/model"], 1, "does not exist"),
        (["--height=0"], 2, "height=0"),
        (["--num-prompts=1", "--height=33", "--num-inference-steps=1"], 2, "divisible by"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, words, code, message):
    assert judge(*words) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_bad_videos_and_prompts_are_named(tmp_path, capsys):
    (tmp_path / "a cat.mp4").write_bytes(b"no video")
    assert judge(f"--videos={tmp_path}") == 2
    assert "not in the grammar" in capsys.readouterr().err
    (tmp_path / "prompts.json").write_text("{}")
    assert judge(f"--videos={tmp_path}") == 2
    assert "has no prompt" in capsys.readouterr().err
    (tmp_path / "prompts.json").write_text('{"a cat.mp4": "a red circle moving left on a dark background"}')
    assert judge(f"--videos={tmp_path}") == 2
    assert "cannot be read as a video" in capsys.readouterr().err
