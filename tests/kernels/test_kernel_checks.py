"""The sweep for machines with a GPU, on the eager twins."""

import json

import pytest
import torch

from fastdit_kernels import kernel_checks
from fastdit_kernels.kernel_checks import OPERATORS, main, run_checks


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernel_checks, "LENGTHS", (200,))
    monkeypatch.setattr(kernel_checks, "SEGMENTS", ((130, 20),))
    monkeypatch.setattr(kernel_checks, "DTYPES", (torch.float32,))


def test_every_kernel_is_checked_and_agrees(tmp_path, capsys):
    assert (
        main(
            [
                "--device",
                "cpu",
                "--implementation",
                "torch",
                "--head-dims",
                "32",
                "--output",
                str(tmp_path / "checks.json"),
            ]
        )
        == 0
    )
    report = json.loads((tmp_path / "checks.json").read_text())
    assert {case["kernel"] for case in report["cases"]} == {"attention", *OPERATORS}
    assert f"{len(report['cases'])} of {len(report['cases'])} cases agree" in capsys.readouterr().out


def test_a_wrong_kernel_and_one_that_raises_are_found(monkeypatch):
    real = kernel_checks.tile_means
    monkeypatch.setattr(
        kernel_checks, "tile_means", lambda x, *a, **k: real(x, *a, **k) * (1 + 1e-3 * (x.dtype == torch.float32))
    )
    monkeypatch.setattr(kernel_checks, "block_mass", lambda *a, **k: torch.zeros(1).expand(2, 2).view(4, 2))
    failed = {
        case["kernel"]: case["fault"]
        for case in run_checks(torch.device("cpu"), "torch", (32,))["cases"]
        if case["fault"]
    }
    assert failed.keys() == {"tile_means", "block_mass"}
    assert "is above" in failed["tile_means"]
    assert "RuntimeError" in failed["block_mass"]
