"""Plans of VBench suites, resumable generation, and the checks of a folder of clips."""

import json
import multiprocessing

import pytest
from vbench_runs import copying_maker, fill, planned_run, write_clip, write_suite

from fastdit.errors import ConfigError
from fastdit_eval.vbench.clip_files import claim, count_frames
from fastdit_eval.vbench.coverage import check_filtered, check_folder
from fastdit_eval.vbench.files import RunFolder, VBenchError
from fastdit_eval.vbench.generation import begin_generation, generate_clips, share_of
from fastdit_eval.vbench.manifest import Manifest, build_manifest, is_official, write_plan
from fastdit_eval.vbench.naming import clip_name, edition_of, num_samples, prompt_of_name

# Under pytest-xdist a process has a second thread, which newer Pythons do not like to see forked.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def test_names_and_sample_counts_are_vbenchs():
    assert clip_name("A cat, 2-D.", 4, "vbench") == "A cat, 2-D.-4.mp4"
    assert clip_name("x" * 200, 2, "vbench-2.0") == "x" * 180 + "-2.mp4"
    assert prompt_of_name("A cat, 2-D.-4.mp4") == ("A cat, 2-D.", 4)
    assert prompt_of_name("A cat.mp4") is None
    assert num_samples(["color"], "vbench") == 5
    assert num_samples(["temporal_flickering"], "vbench") == 25
    assert (num_samples(["Mechanics"], "vbench-2.0"), num_samples(["Diversity"], "vbench-2.0")) == (3, 20)
    assert [edition_of(seconds) for seconds in (4.99, 5.0, 81 / 16)] == ["vbench", "vbench-long", "vbench-long"]


@pytest.mark.parametrize("prompt", ["a/b", ".hidden", "é" * 125])
def test_impossible_names_are_refused(prompt):
    with pytest.raises(ConfigError, match="file"):
        clip_name(prompt, 0, "vbench")
    assert len(clip_name("é" * 124, 0, "vbench").encode()) == 254


def test_the_plan_lists_every_clip_with_its_seed(tmp_path):
    suite = tmp_path / "suite.json"
    entries = [
        {"prompt_en": "a cat", "dimension": ["subject_consistency", "dynamic_degree"]},
        {"prompt_en": "still", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a cat", "dimension": ["scene"], "auxiliary_info": {"scene": {}}},
        {"prompt_en": "A cat", "dimension": ["scene"]},
    ]
    suite.write_text(json.dumps(entries))
    used = tmp_path / "long.txt"
    used.write_text("a long cat\nvery still\na long cat\nlonger\n")
    manifest = build_manifest(suite, seed=7, prompts_used=used)
    assert [(prompt.prompt_en, prompt.prompt_used, prompt.samples) for prompt in manifest.prompts] == [
        ("a cat", "a long cat", 5),
        ("still", "very still", 25),
        ("A cat", "longer", 5),
    ]
    assert len(manifest.clips) == 35
    assert [(clip.file, clip.seed) for clip in manifest.clips[:2]] == [("a cat-0.mp4", 7), ("a cat-1.mp4", 8)]
    assert manifest.expected("scene") == tuple(f"{name} cat-{i}.mp4" for name in "aA" for i in range(5))
    assert len(manifest.expected("temporal_flickering")) == 5
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    assert is_official(manifest)
    assert not is_official(build_manifest(suite, samples=1))
    only = build_manifest(suite, dimensions=["scene"], limit=1)
    assert only.prompts[0].dimensions == ("scene",)
    assert len(only.clips) == 5


def test_bad_suites_and_plans_are_named(tmp_path):
    suite = tmp_path / "suite.json"
    for text in ("{}", "[]", '[{"prompt_en": " ", "dimension": []}]', '[{"prompt_en": "a"}]', "nothing"):
        suite.write_text(text)
        with pytest.raises(ConfigError, match="suite"):
            build_manifest(suite)
    suite.write_text(json.dumps([{"prompt_en": "x" * 190 + end, "dimension": ["Mechanics"]} for end in "ab"]))
    with pytest.raises(ConfigError, match="would both be called"):
        build_manifest(suite, benchmark="vbench-2.0")
    (tmp_path / "lines.txt").write_text("one\n")
    with pytest.raises(ConfigError, match="1 lines"):
        build_manifest(suite, prompts_used=tmp_path / "lines.txt")
    with pytest.raises(ConfigError, match="accepted are 'Mechanics'"):
        build_manifest(suite, dimensions=["scene"])
    (tmp_path / "manifest.json").write_text('{"schema": "other"}')
    with pytest.raises(ConfigError, match="eval vbench plan"):
        Manifest.load(tmp_path / "manifest.json")
    run, _ = planned_run(tmp_path / "run", ["scene"])
    other = write_suite(tmp_path / "other.json", ["color"])
    with pytest.raises(ConfigError, match="holds another plan"):
        write_plan(run, other, build_manifest(other))


def test_a_stopped_run_goes_on_and_makes_no_clip_twice(tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["scene"])
    source = tmp_path / "source.mp4"
    write_clip(source)
    seeds = []
    copy = copying_maker(source)

    def make(prompt, seed, path):
        seeds.append(seed)
        if len(seeds) == 3:
            path.write_bytes(source.read_bytes()[:500])
            raise KeyboardInterrupt
        return copy(prompt, seed, path)

    clips = list(enumerate(manifest.clips))
    with pytest.raises(KeyboardInterrupt):
        generate_clips(run, manifest, clips, make)
    assert sorted(path.name for path in run.videos.iterdir()) == [clip.file for clip in manifest.clips[:2]]
    # What a crash between record and move, and a damaged disk, would leave.
    (run.videos / manifest.clips[1].file).unlink()
    first = run.videos / manifest.clips[0].file
    first.write_bytes(first.read_bytes()[:-200])
    assert count_frames(first) is None
    tally = generate_clips(run, manifest, clips, make)
    assert (tally.made, tally.kept) == (5, 0)
    assert seeds == [0, 1, 2, 0, 1, 2, 3, 4]
    tally = generate_clips(run, manifest, clips, make)
    assert (tally.made, tally.kept) == (0, 5)
    check_folder(run.videos, manifest)
    record = json.loads((run.records / "00004.json").read_text())
    assert (record["seed"], record["file"], record["num_frames"]) == (4, manifest.clips[4].file, 3)


def test_clips_that_do_not_read_back_or_are_not_ours_are_refused(tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["scene"])
    source = tmp_path / "source.mp4"
    write_clip(source, frames=2)
    with pytest.raises(VBenchError, match="cannot be read back"):
        generate_clips(run, manifest, share_of(manifest, 0, 1), copying_maker(source))
    assert not any(run.videos.iterdir())
    (run.videos / manifest.clips[0].file).write_bytes(source.read_bytes())
    with pytest.raises(VBenchError, match="was not made by this run"):
        generate_clips(run, manifest, share_of(manifest, 0, 1), copying_maker(source))


def test_shares_do_not_overlap_and_a_held_clip_is_left_alone(tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["scene", "color"])
    shares = [share_of(manifest, rank, 3) for rank in range(3)]
    assert sorted(number for share in shares for number, _ in share) == list(range(10))
    source = tmp_path / "source.mp4"
    write_clip(source)
    with claim(run.staging / "00002.lock") as mine:
        assert mine
        tally = generate_clips(run, manifest, share_of(manifest, 0, 1), copying_maker(source), batch=4)
    assert (tally.made, tally.elsewhere) == (4, 1)
    assert not (run.videos / manifest.clips[2].file).exists()


def _hold(path, ready):
    with claim(path):
        ready.set()
        multiprocessing.Event().wait()


@FORKS
def test_a_claim_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", ready), daemon=True)
    holder.start()
    assert ready.wait(300)
    with claim(tmp_path / "lock") as mine:
        assert not mine
    holder.kill()
    holder.join()
    with claim(tmp_path / "lock") as mine:
        assert mine


def test_a_folder_keeps_to_its_settings(tmp_path):
    run, _ = planned_run(tmp_path / "run", ["scene"])
    begin_generation(run, {"model": "tiny", "fps": 8})
    begin_generation(run, {"model": "tiny", "fps": 8})
    with pytest.raises(ConfigError, match="fps=16, there it was 8"):
        begin_generation(run, {"model": "tiny", "fps": 16})


def test_stray_files_are_refused(tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["scene"])
    check_folder(run.videos, manifest)
    for name in ("manifest.json", "a cat-0.mp4", "a cat, scene-5.mp4", "a cat, scene-0.gif"):
        stray = run.videos / name
        stray.write_text("{}")
        with pytest.raises(VBenchError, match="no clips of the plan"):
            check_folder(run.videos, manifest)
        stray.unlink()


def test_only_the_static_filters_five_are_taken(tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["temporal_flickering"])
    fill(run, manifest, tmp_path / "source.mp4")
    assert len(list(run.videos.iterdir())) == 25
    with pytest.raises(VBenchError, match="unfiltered set of 25"):
        check_filtered(run, manifest, run.videos, "temporal_flickering")
    folder = tmp_path / "filtered"
    folder.mkdir()
    with pytest.raises(VBenchError, match="no static clips"):
        check_filtered(run, manifest, folder, "temporal_flickering")
    for index in range(3):
        data = (run.videos / manifest.clips[20 + index].file).read_bytes()
        (folder / manifest.clips[index].file).write_bytes(data)
    found = check_filtered(run, manifest, folder, "temporal_flickering")
    assert found == {"num_prompts": 1, "num_clips": 3, "short": {"a cat, temporal_flickering": 3}}
    write_clip(folder / manifest.clips[3].file, seed=1)
    with pytest.raises(VBenchError, match="no clip of this run"):
        check_filtered(run, manifest, folder, "temporal_flickering")


def _generate_until_the_third(folder, source, ready):
    run = RunFolder(folder)
    copy = copying_maker(source)

    def make(prompt, seed, path):
        if seed == 2:
            path.write_bytes(source.read_bytes()[:500])
            ready.set()
            multiprocessing.Event().wait()
        return copy(prompt, seed, path)

    generate_clips(run, Manifest.load(run.manifest), share_of(Manifest.load(run.manifest), 0, 1), make)


@FORKS
def test_a_killed_process_loses_only_the_clip_in_work(tmp_path):
    run, manifest = planned_run(tmp_path / "run", ["scene"])
    source = tmp_path / "source.mp4"
    write_clip(source)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_generate_until_the_third, args=(run.root, source, ready), daemon=True)
    process.start()
    assert ready.wait(300)
    process.kill()
    process.join()
    assert sorted(path.name for path in run.videos.iterdir()) == [clip.file for clip in manifest.clips[:2]]
    stamps = [(run.videos / clip.file).stat().st_mtime_ns for clip in manifest.clips[:2]]
    tally = generate_clips(run, manifest, share_of(manifest, 0, 1), copying_maker(source))
    assert (tally.made, tally.kept, tally.elsewhere) == (3, 2, 0)
    assert [(run.videos / clip.file).stat().st_mtime_ns for clip in manifest.clips[:2]] == stamps
    assert {path.read_bytes() for path in run.videos.iterdir()} == {source.read_bytes()}
