from types import ModuleType

import pytest

from fastdit import ConfigError, OutputError
from fastdit_eval.case_log import CaseLog, hash_sources

SETTINGS = {"repeats": 3, "tiles": [128, 64]}


def never():
    raise AssertionError("measured again")


def test_finished_parts_are_not_measured_again(tmp_path):
    path = tmp_path / "folder" / "cases.jsonl"
    log = CaseLog(path, SETTINGS)
    assert log.get("a", lambda: [{"error": 0.1 + 0.2}]) == [{"error": 0.1 + 0.2}]
    assert log.get("a", never) == [{"error": 0.1 + 0.2}]
    again = CaseLog(path, {"tiles": [128, 64], "repeats": 3})
    assert again.get("a", never) == [{"error": 0.1 + 0.2}]
    assert again.get("b", lambda: []) == []
    path.unlink()
    # As when another run into the same folder is done first.
    assert again.get("c", lambda: [{}]) == [{}]
    assert CaseLog(path, SETTINGS).get("c", never) == [{}]


@pytest.mark.parametrize("kept", [1, 0.5, 0.98])
def test_what_a_kill_cut_short_is_measured_again(tmp_path, kept):
    """Wherever it cuts, and any number of times."""
    path = tmp_path / "cases.jsonl"
    for _ in range(2):
        log = CaseLog(path, SETTINGS)
        log.get("a", lambda: [{"error": 1}])
        log.get("b", lambda: [{"error": 2}])
        text = path.read_text()
        last = text.rindex('{"key"')
        path.write_text(text[: last + round(kept * (len(text) - last))])
    log = CaseLog(path, SETTINGS)
    assert log.get("a", never) == [{"error": 1}]
    assert log.get("b", never if kept == 1 else lambda: [{"error": 3}]) == [{"error": 2 if kept == 1 else 3}]
    assert CaseLog(path, SETTINGS).get("b", never) == [{"error": 2 if kept == 1 else 3}]


def test_settings_that_were_cut_short_are_written_again(tmp_path):
    path = tmp_path / "cases.jsonl"
    CaseLog(path, SETTINGS).get("a", lambda: [{}])
    path.write_text(path.read_text()[:7])
    CaseLog(path, SETTINGS).get("a", lambda: [])
    assert CaseLog(path, SETTINGS).get("a", never) == []


def test_cases_of_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "cases.jsonl"
    CaseLog(path, SETTINGS).get("a", lambda: [{}])
    with pytest.raises(ConfigError, match="other settings"):
        CaseLog(path, {**SETTINGS, "repeats": 2})
    head = path.read_text().splitlines()[0]
    for line in ("", "[]", "{}", '{"key'):
        path.write_text(f"{head}\n{line}\n")
        with pytest.raises(ConfigError, match="damaged"):
            CaseLog(path, SETTINGS)
    path.write_text("a letter")
    with pytest.raises(ConfigError, match="other settings"):
        CaseLog(path, SETTINGS)
    with pytest.raises(ConfigError, match="cannot be read"):
        CaseLog(tmp_path, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        CaseLog(tmp_path / "file" / "cases.jsonl", SETTINGS).get("a", lambda: [])


def test_without_a_file_parts_are_still_measured_once():
    log = CaseLog(None, SETTINGS)
    assert log.get("a", lambda: [{}]) == log.get("a", never)


def test_figures_that_no_report_may_hold_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        CaseLog(tmp_path / "cases.jsonl", SETTINGS).get("a", lambda: [{"error": float("nan")}])


def test_other_code_has_another_hash(tmp_path):
    package = ModuleType("package")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "one.py").write_text("1")
    before = hash_sources([package])
    assert hash_sources([package]) == before
    (tmp_path / "one.py").write_text("2")
    assert hash_sources([package]) != before
