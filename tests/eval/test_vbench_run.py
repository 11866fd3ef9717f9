"""The driver around a stand-in for the official package: what it asks, keeps and refuses."""

import json

import pytest
from vbench_runs import fill, planned_run, stand_in_interpreter, write_clip

from fastdit.errors import ConfigError
from fastdit_eval.vbench.files import VBenchError, sha256_of
from fastdit_eval.vbench.foreign import examine
from fastdit_eval.vbench.official import OfficialRun, run_official
from fastdit_eval.vbench.score import score_run


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return stand_in_interpreter(tmp_path_factory.mktemp("foreign"), broken=("imaging_quality",))


@pytest.fixture
def cache(tmp_path):
    weights = tmp_path / "cache" / "amt_model" / "amt-s.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    clip = tmp_path / "cache" / "clip_model" / "ViT-B-32.pt"
    clip.parent.mkdir()
    clip.write_bytes(b"other weights than the published ones")
    return tmp_path / "cache"


def test_the_doctor_says_what_runs_offline(interpreter, cache):
    report = examine(interpreter[0], cache)
    assert report["modules"]["vbench"] is None
    assert report["suite"] == str(interpreter[1] / "VBench_full_info.json")
    assert report["cache"] == str(cache)
    ready = {name for name, found in report["dimensions"].items() if found["ready"]}
    assert ready == {"temporal_flickering", "motion_smoothness", "background_consistency", "appearance_style"}
    assert "no_such_module_at_all" in report["dimensions"]["imaging_quality"]["needs"][0]
    assert report["dimensions"]["dynamic_degree"]["needs"] == ["raft_model/models/raft-things.pth"]


def test_an_interpreter_that_is_none_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be started"):
        examine(tmp_path / "python", None)


def test_results_are_kept_untouched_and_not_measured_again(interpreter, cache, tmp_path):
    python, package = interpreter
    run, manifest = planned_run(tmp_path / "run", ["motion_smoothness", "background_consistency"])
    fill(run, manifest, tmp_path / "source.mp4")
    how = OfficialRun(python=python, cache=cache)
    meta = run_official(run, manifest, how)
    entry = meta["dimensions"]["motion_smoothness"]
    assert entry["coverage"] == [1, 5, 5]
    assert entry["weights"] == "official"
    assert entry["weights_sha256"]["amt_model/amt-s.pth"] == sha256_of(cache / "amt_model" / "amt-s.pth")
    assert meta["leaderboard_edition"] == "vbench"
    path = run.results / "motion_smoothness_eval_results.json"
    assert sha256_of(path) == entry["result_sha256"]
    assert sorted(path.name for path in run.results.iterdir()) == [
        "background_consistency_eval_results.json",
        "motion_smoothness_eval_results.json",
    ]
    calls = (package / "calls.txt").read_text()
    assert run_official(run, manifest, how) == meta
    assert (package / "calls.txt").read_text() == calls
    # A hash that is published, and differs.
    assert meta["dimensions"]["background_consistency"]["weights"] == "wrong"
    with pytest.raises(VBenchError, match="wrong weights"):
        score_run(run, manifest, partial=True)


def test_incomplete_folders_and_missing_weights_are_refused(interpreter, cache, tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["motion_smoothness", "dynamic_degree"])
    how = OfficialRun(python=interpreter[0], cache=cache, dimensions=("motion_smoothness",))
    fill(run, manifest, tmp_path / "source.mp4")
    with pytest.raises(VBenchError, match=r"missing: raft_model"):
        run_official(run, manifest, OfficialRun(python=interpreter[0], cache=cache))
    (run.results / "motion_smoothness_eval_results.json").unlink()
    stray = run.videos / "manifest.json"
    stray.write_text("{}")
    with pytest.raises(VBenchError, match="no clips of the plan"):
        run_official(run, manifest, how)
    stray.unlink()
    clip = run.videos / manifest.expected("motion_smoothness")[1]
    clip.write_bytes(clip.read_bytes()[:-100])
    with pytest.raises(VBenchError, match="1 of 5 clips are missing or unreadable"):
        run_official(run, manifest, how)
    clip.unlink()
    partial = OfficialRun(**{**vars(how), "allow_partial": True, "random_weights": True})
    entry = run_official(run, manifest, partial)["dimensions"]["motion_smoothness"]
    assert (entry["coverage"], entry["weights"]) == ([1, 5, 4], "random")
    with pytest.raises(VBenchError, match="random weights"):
        score_run(run, manifest, partial=True)


def test_a_plan_of_a_part_of_the_suite_is_partial(interpreter, cache, tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["motion_smoothness"], samples=2)
    fill(run, manifest, tmp_path / "source.mp4")
    with pytest.raises(VBenchError, match="3 of 5 clips are missing"):
        run_official(run, manifest, OfficialRun(python=interpreter[0], cache=cache))


def test_nan_from_the_package_is_refused_and_not_kept(interpreter, cache, tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["motion_smoothness"])
    fill(run, manifest, tmp_path / "source.mp4")
    switch = interpreter[1] / "__init__.py.nan"
    switch.touch()
    try:
        with pytest.raises(VBenchError, match="motion_smoothness is nan"):
            run_official(run, manifest, OfficialRun(python=interpreter[0], cache=cache))
    finally:
        switch.unlink()
    assert not run.results.exists()
    assert not run.meta.exists()


def test_flicker_takes_the_filtered_clips(interpreter, tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["temporal_flickering"])
    fill(run, manifest, tmp_path / "source.mp4")
    folder = tmp_path / "filtered_videos"
    folder.mkdir()
    for clip in manifest.clips[:5]:
        (folder / clip.file).write_bytes((run.videos / clip.file).read_bytes())
    meta = run_official(run, manifest, OfficialRun(python=interpreter[0], filtered_videos=folder))
    assert meta["dimensions"]["temporal_flickering"]["static_filter"]["num_clips"] == 5
    with pytest.raises(VBenchError, match="the quality score needs all"):
        score_run(run, manifest)
    assert score_run(run, manifest, partial=True)["dimensions"]["temporal_flickering"]["raw"] == 0.5


def test_long_clips_and_other_benchmarks_are_named(interpreter, cache, tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["motion_smoothness"])
    write_clip(tmp_path / "source.mp4")
    fill(run, manifest, tmp_path / "source.mp4", fps=0.5)
    meta = run_official(run, manifest, OfficialRun(python=interpreter[0], cache=cache))
    assert json.loads(run.meta.read_text())["leaderboard_edition"] == meta["leaderboard_edition"] == "vbench-long"
    run, manifest = planned_run(tmp_path / "long", ["motion_smoothness"], benchmark="vbench-long")
    with pytest.raises(ConfigError, match="the package vbench cannot run it"):
        run_official(run, manifest, OfficialRun(python=interpreter[0]))
