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


def test_lengths_and_densities_of_the_kernel_bench_can_be_named(monkeypatch, capsys):
    asked = {}

    def note(**settings):
        asked.update(settings)
        return {"environment": {"device": "cpu", "threads": 1, "torch": "2"}, "cases": []}

    monkeypatch.setattr("fastdit_kernels.bench.run_bench", note)
    words = ["--shapes", "32,768 tokens, 1 head x 64", "--densities", "0.05", "0.4", "--device", "cpu", "--json"]
    assert main(["bench", "kernels", *words]) == 0
    assert [shape.length for shape in asked["shapes"]] == [32_768]
    assert asked["densities"] == (0.05, 0.4)
    assert main(["bench", "kernels", "--densities", "1.5", "--device", "cpu"]) != 0
    assert "densities" in capsys.readouterr().err


def test_an_unknown_device_is_wrong_usage(capsys):
    assert main(["bench", "kernels", "--device", "tpu"]) == 2
    assert "'cpu'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fastdit_kernels.bench.run_bench", lambda **settings: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert main(["bench", "kernels", "--quick", "--output", str(tmp_path / "file" / "folder")]) != 0
    assert "cannot be written" in capsys.readouterr().err
