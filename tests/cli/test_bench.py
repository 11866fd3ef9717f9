import json

import pytest

from fastdit.cli import main


def test_quick_kernel_bench_writes_figures_and_a_picture(tmp_path, capsys):
    assert (
        main(["bench", "kernels", "--quick", "--repeats", "1", "--device", "cpu", "--json", "--output", str(tmp_path)])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "kernels.json").read_text()) == printed
    assert {case["uneven_rows"] for case in printed["cases"]} == {True, False}
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_device_is_wrong_usage(capsys):
    assert main(["bench", "kernels", "--device", "tpu"]) == 2
    assert "'cpu'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fastdit_kernels.bench.run_bench", lambda **settings: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert main(["bench", "kernels", "--quick", "--output", str(tmp_path / "file" / "folder")]) != 0
    assert "cannot be written" in capsys.readouterr().err
