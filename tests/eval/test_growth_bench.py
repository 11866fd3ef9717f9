"""Growth with the tokens: the fit, the memory meter and a bench of tiny size."""

import json

import pytest
import torch

from fastdit import VideoGrid
from fastdit.cli import main
from fastdit_eval import operator_times
from fastdit_eval.bench_methods import BENCH_METHODS, bench_config, random_heads
from fastdit_eval.growth_bench import cubic_grid, fit_exponent
from fastdit_eval.operator_times import time_operator
from fastdit_eval.peak_memory import peak_memory

CPU = torch.device("cpu")
GRID = VideoGrid(frames=4, height=12, width=12)


def test_the_exponent_of_a_power_is_found():
    lengths = [100, 200, 400, 800]
    assert fit_exponent(lengths, [3e-9 * n**1.7 for n in lengths]) == pytest.approx(1.7)
    assert fit_exponent([100], [1.0]) is None
    assert fit_exponent(lengths, [0.0, 1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("tokens", [1, 2048, 4096, 5000, 32768])
def test_grids_have_nearly_equal_sides_and_nearly_so_many_tokens(tokens):
    grid = cubic_grid(tokens)
    sides = grid.frames, grid.height, grid.width
    assert max(sides) - min(sides) <= 2
    assert 0.95 * tokens <= grid.length <= tokens


def test_peak_memory_counts_what_lives_at_once():
    def work():
        first = torch.zeros(1000, 250)  # 1 MB, freed before the second
        del first
        second = torch.zeros(1000, 500)
        return second + 1

    assert peak_memory(work, CPU) == pytest.approx(4e6, rel=0.01)


@pytest.mark.parametrize("method", BENCH_METHODS)
def test_methods_come_near_the_density(method):
    grid = cubic_grid(4096)
    tensors = random_heads(grid, 1, 16, torch.float32, CPU)
    with torch.no_grad():
        row = time_operator(tensors, grid, {method: bench_config(method, 0.2, grid)}, 1)["methods"][method]
    assert 0.1 < row["density"] <= 0.21  # whole tiles


def test_a_cached_call_is_the_mean_over_the_steps_that_a_mask_serves(monkeypatch):
    seconds = {"build": 2.0, "reuse": 1.0}

    def fake(runs, repeats, device):
        def of(name):
            return 12.0 if name.startswith("dense") else seconds[name.split("/")[1]]

        return {name: [of(name)] * repeats for name in runs}

    monkeypatch.setattr(operator_times, "time_together", fake)
    tensors = random_heads(GRID, 1, 16, torch.float32, CPU)
    configs = {name: bench_config(name, 0.5, GRID) for name in ("cached", "adaptive")}
    rows = time_operator(tensors, GRID, configs, 2)["methods"]
    assert rows["cached"]["seconds"] == pytest.approx(1.1)
    assert rows["adaptive"]["seconds"] == pytest.approx(2.0)
    assert rows["cached"]["speedup"] == pytest.approx(12 / 1.1)
    assert rows["cached"]["select_share"] == 0.0


def test_the_command_measures_all_methods_and_draws(tmp_path, capsys):
    words = ["bench", "growth", "--tokens", "300", "700", "--heads=1", "--head-dim=16", "--repeats=1", "--density=0.3"]
    words += [f"--output={tmp_path / 'out'}", f"--plot={tmp_path / 'too.png'}"]
    assert main([*words, "--device=cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out" / "growth.json").read_text())
    for picture in ("out/growth.png", "too.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert set(report["exponents"]) == {"dense", *BENCH_METHODS}
    assert len(report["cases"]) == 2 * (1 + len(BENCH_METHODS))
    assert report["exponents"]["dense"]["seconds"] > 0
    for case in report["cases"]:
        assert case["seconds"] > 0
        assert case["peak_bytes"] > 0
    assert {"torch", "diffusers"} <= set(report["environment"]["packages"])


def test_wrong_usage_is_named(capsys):
    assert main(["bench", "growth", "--methods", "none"]) == 2
    assert "'adaptive'" in capsys.readouterr().err
