"""Runs, plans and settings: names cannot leave the output folder, halves never appear."""

import json
from pathlib import Path

import pytest

from fastdit.errors import ConfigError, InvalidInputError, OutputError, PlanError
from fastdit_ui.plans import PlanStore
from fastdit_ui.runs import RunStore
from fastdit_ui.settings import LOCALHOST, ServerSettings

BAD_NAMES = ("../outside", "/etc", "..", ".", "", "a/b", "a\\b", ".hidden", "x" * 101, "run\n", "run\0", None, 7)


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "report.json").write_text("{}")
    return RunStore(tmp_path / "library")


def write_run(runs, **report):
    with runs.new() as (name, folder):
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "video.mp4").write_bytes(b"video")
    return name


def test_a_run_appears_whole_and_is_found_by_a_new_store(runs):
    name = write_run(runs, prompt="a circle")
    again = RunStore(runs.root)
    assert [one.name for one in again.list()] == [name]
    record = again.get(name)
    assert record.report == {"prompt": "a circle"}
    assert record.file("video.mp4").read_bytes() == b"video"
    assert record.file("dense.mp4") is None


def test_a_failed_run_leaves_nothing(runs):
    def fail():
        with runs.new() as (_, folder):
            (folder / "video.mp4").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(runs.root.iterdir()) == []


def test_results_of_the_command_line_are_runs_too(runs):
    folder = runs.root / "demo"
    folder.mkdir()
    (folder / "report.json").write_text('{"psnr": 30}')
    assert runs.get("demo").report["psnr"] == 30


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_cannot_leave_the_library(runs, name):
    with pytest.raises(InvalidInputError, match="not in the library"):
        runs.get(name)


def test_links_out_of_the_library_are_not_followed(runs):
    (runs.root / "link").symlink_to(runs.root.parent / "outside")
    name = write_run(runs)
    record = runs.get(name)
    (record.folder / "dense.mp4").symlink_to("/etc/passwd")
    assert [one.name for one in runs.list()] == [name]
    assert record.file("dense.mp4") is None
    assert record.file("../../outside/report.json") is None
    with pytest.raises(InvalidInputError):
        runs.get("link")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\x80"])
def test_damaged_reports_are_left_out(runs, text):
    (runs.root / "damaged").mkdir()
    (runs.root / "damaged" / "report.json").write_text(text, encoding="latin-1")
    assert runs.list() == []


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        RunStore(tmp_path / "file" / "library")


@pytest.mark.parametrize("name", ["../plan", "/etc/passwd", "a/b", "", ".x", None])
def test_names_of_plans_cannot_leave_their_folder(tmp_path, name):
    with pytest.raises(InvalidInputError, match="plan name"):
        PlanStore(tmp_path / "plans").path(name)


def test_a_missing_plan_is_told_with_those_there_are(tmp_path):
    (tmp_path / "good.json").write_text("{}")
    with pytest.raises(PlanError, match="it has good"):
        PlanStore(tmp_path).load("other")


def test_by_default_the_server_is_for_this_machine_alone():
    settings = ServerSettings(output_dir=Path("x"))
    assert (settings.host, settings.share, settings.mcp) == (LOCALHOST, False, False)
    assert settings.models == ("tiny",)
    with pytest.raises(ConfigError, match="started with 'tiny'"):
        settings.check_model("/some/folder")


@pytest.mark.parametrize(
    "given", [{"models": ()}, {"models": ("a", "a")}, {"host": "a b"}, {"port": 0}, {"max_upload_mb": 0}]
)
def test_settings_are_checked(given):
    with pytest.raises(ConfigError):
        ServerSettings(output_dir=Path("x"), **given)
