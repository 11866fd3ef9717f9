"""Files that are whole or absent, whatever ends the writing."""

import stat

import pytest

from fastdit.errors import OutputError
from fastdit.whole_files import whole_file, write_json


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / ("é" * 120 + ".mp4")  # nearly as long as names may be
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert (partial.parent, partial.suffix) == (tmp_path, ".mp4")
    assert path.read_text() == "new"
    assert names(tmp_path) == [path.name]


def test_a_failure_leaves_no_trace(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_others_may_read_it_as_any_file(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "whole"):
        pass
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")}
    assert len(modes) == 1


def test_what_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(OutputError, match=r"'.*none/file' cannot be written: No such file"),
        whole_file(tmp_path / "none" / "file"),
    ):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_json(tmp_path / "file" / "below.json", {})
    write_json(tmp_path / "made" / "data.json", {"x": 1})
    assert (tmp_path / "made" / "data.json").read_text() == '{\n  "x": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "made" / "data.json", {"x": float("inf")})
