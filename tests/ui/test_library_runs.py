"""The library: what is listed, shown and deleted, and that nothing outside the output folder is touched."""

import json

import numpy as np
import pytest

import fastdit
from fastdit_ui.library_runs import DELETED, delete_run, finish_deletions, kind_of, make_report, rows, videos
from fastdit_ui.runs import RunStore

PLAIN = {"model": "tiny", "method": "adaptive", "prompt": "a red circle", "seed": 3, "density": 0.5, "settings": {}}
COMPARED = {**PLAIN, "title": "Balanced", "speedup": 1.5, "psnr": 31.25, "ssim": 0.9, "prompt": "a blue square"}


def add(runs, report, files=("video.mp4",)):
    with runs.new() as (name, folder):
        for file in files:
            (folder / file).write_bytes(b"\0")
        (folder / "report.json").write_text(json.dumps(report))
    return name


@pytest.fixture
def runs(tmp_path):
    return RunStore(tmp_path / "out")


def test_runs_are_listed_with_their_figures_and_survive_a_restart(runs):
    first = add(runs, PLAIN)
    second = add(runs, COMPARED, ("dense.mp4", "sparse.mp4", "compare.png"))
    third = add(runs, {**PLAIN, "kind": "inside"})
    again = RunStore(runs.root)
    listed = {row[0]: row for row in rows(again)}
    assert listed.keys() == {first, second, third}
    assert listed[second][2:] == ["compare", "tiny", "Balanced", "a blue square", "3", "0.500", "31.25", "1.50"]
    assert listed[first][2] == "generate"
    assert [row[0] for row in rows(again, kind="inside")] == [third]
    assert [row[0] for row in rows(again, "BLUE")] == [second]
    assert rows(again, "nothing of this") == []
    assert set(videos(again.get(second))) == {"dense", "sparse"}
    assert kind_of(again.get(third)) == "inside"


def test_reports_with_wrong_types_do_not_break_the_list(runs):
    name = add(runs, {"density": "much", "psnr": None, "speedup": True, "prompt": ["a"], "seed": {}})
    (row,) = rows(runs)
    assert row[0] == name
    assert row[7:] == ["", "", ""]


def test_deleting_takes_the_run_and_nothing_else(runs, tmp_path):
    kept, doomed = add(runs, PLAIN), add(runs, PLAIN)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    (runs.get(doomed).folder / "link").symlink_to(outside)
    delete_run(runs, doomed)
    assert [one.name for one in runs.list()] == [kept]
    assert (outside / "precious.txt").read_text() == "mine"
    assert sorted(path.name for path in runs.root.iterdir()) == [kept]
    with pytest.raises(fastdit.InvalidInputError, match="not in the library"):
        delete_run(runs, doomed)


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "/etc", "a/b", "plans/..", None, "x\0y"])
def test_names_outside_the_library_are_refused(runs, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "report.json").write_text("{}")
    (runs.root / "plans").mkdir()
    for act in (delete_run, make_report):
        with pytest.raises(fastdit.InvalidInputError):
            act(runs, name)
    assert (outside / "report.json").exists()
    assert (runs.root / "plans").exists()


def test_a_link_in_the_output_folder_is_no_run(runs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "report.json").write_text(json.dumps(PLAIN))
    (runs.root / "linked").symlink_to(outside)
    assert rows(runs) == []
    with pytest.raises(fastdit.InvalidInputError):
        delete_run(runs, "linked")
    assert (outside / "report.json").exists()


def test_an_interrupted_deletion_is_finished_at_the_next_start(runs, tmp_path):
    kept = add(runs, PLAIN)
    half = runs.root / f"{DELETED}20260101"
    half.mkdir()
    (half / "video.mp4").write_bytes(b"\0")
    outside = tmp_path / "outside"
    outside.mkdir()
    (runs.root / f"{DELETED}link").symlink_to(outside)
    finish_deletions(runs)
    assert not half.exists()
    assert outside.exists()
    assert [one.name for one in runs.list()] == [kept]


def test_reports_are_made_of_comparisons_alone(runs):
    compared = add(runs, {**COMPARED, "environment": {}, "fidelity_convention": "raw frames"})
    page = make_report(runs, compared)
    assert page == runs.root / compared / "report.html"
    assert "a blue square" in page.read_text() or "31.2" in page.read_text()
    with pytest.raises(fastdit.InvalidInputError, match="report of a comparison"):
        make_report(runs, add(runs, PLAIN))


def test_frames_of_recorded_runs_are_checked(runs):
    from fastdit_ui.recording import FOLDER, FRAMES, open_frames, open_run

    record = runs.get(add(runs, {**PLAIN, "kind": "inside"}))
    with pytest.raises(fastdit.InvalidInputError, match="was not recorded"):
        open_run(runs, record.name)
    (record.folder / FOLDER).mkdir()
    with pytest.raises(fastdit.InvalidInputError, match="no recorded run"):
        open_run(runs, record.name)
    np.savez(record.folder / FOLDER / FRAMES, frames=np.array([object()], dtype=object))
    with pytest.raises(fastdit.InvalidInputError, match="damaged"):
        open_frames(record)
