"""The yardstick of reuse on captured runs of tiny size."""

import dataclasses
import json

import pytest
import torch

from fastdit import AdaptiveConfig, CachedConfig, ConfigError, VideoGrid
from fastdit.capture import CapturedCall, save_calls
from fastdit.cli import main
from fastdit_eval.cached_bench import cached_variants, run_cached_bench, runs_of, summarize

GRID = VideoGrid(frames=4, height=6, width=6)


def run_of(generator, steps, change, layer=0):
    """A run whose queries and keys turn away from those of the first step, by a share `change` in each step."""
    base = [2 * torch.randn(2, GRID.length, 16, generator=generator) for _ in range(3)]
    calls = []
    for step in steps:
        base = [(1 - change) * x + change * 2 * torch.randn(x.shape, generator=generator) for x in base]
        tensors = dict(zip(("query", "key", "value"), base, strict=True))
        calls.append(CapturedCall(transformer=0, layer=layer, step=step, branch="cond", grid=GRID, **tensors))
    return calls


def small(density=0.3, refresh_every=3):
    return cached_variants(density, refresh_every, 16, 8)


def test_masks_of_a_run_that_stands_still_lose_nothing(rng):
    report = run_cached_bench(run_of(rng, range(2, 7), 0.0), small(), repeats=1)
    assert set(report["summary"]) == {"adaptive", "adaptive sampled", "adaptive auto pooled", "exact mass", "pyramid"}
    for row in report["summary"].values():
        assert row["error_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert row["fresh_error"] > 0.1
    ages = [case["age"] for case in report["cases"] if case["variant"] == "pyramid"]
    assert ages == [0, 1, 2, 0, 1]
    assert json.loads(json.dumps(report))["variants"]["pyramid"]["refresh_every"] == 3


def test_masks_of_a_run_that_changes_lose_with_their_age(rng):
    config = CachedConfig(source=AdaptiveConfig(q_tile=16, kv_tile=8, density=0.3), refresh_every=4, min_recall=None)
    row = run_cached_bench(run_of(rng, range(8), 0.3), {"adaptive": config}, repeats=1)["summary"]["adaptive"]
    assert row["error_ratio_by_age"]["0"] == pytest.approx(1.0, abs=1e-4)
    assert row["error_ratio_by_age"]["3"] > 1.02
    assert row["error_ratio"] > 1.01


def test_runs_end_where_steps_do_not_go_on(rng):
    calls = [*run_of(rng, (1, 2), 0), *run_of(rng, (1, 2, 3, 6), 0), *run_of(rng, (4, 5), 0, layer=1)]
    found = runs_of(calls)
    assert {place: [call.step for call in run] for place, run in found.items()} == {
        (0, 0, 0): [1, 2],
        (0, 0, 1): [1, 2, 3],
        (0, 1, 0): [4, 5],
    }
    with pytest.raises(ConfigError, match="no consecutive steps"):
        runs_of(run_of(rng, (1, 3), 0))


def test_the_summary_sums_before_it_divides():
    case = {"cached_error": 0.2, "fresh_error": 0.1, "cached_seconds": 0.0, "fresh_seconds": 3.0}
    case |= {"cached_density": 0.2, "refreshed_heads": 1, "age": 1, "dense_seconds": 4.0, "settle_seconds": 0.0}
    other = {**case, "cached_error": 0.4, "fresh_error": 0.4, "cached_seconds": 1.0, "fresh_seconds": 1.0, "age": 0}
    other["settle_seconds"] = 6.0
    row = summarize([case, other])
    assert row["error_ratio"] == pytest.approx(1.2)
    assert row["cost_ratio"] == pytest.approx(0.25)
    assert row["cost_of_dense"] == pytest.approx(0.125)
    assert row["settling_in_selections"] == pytest.approx(3.0)
    assert row["error_ratio_by_age"] == {"0": pytest.approx(1.0), "1": pytest.approx(2.0)}
    assert row["refreshed_heads"] == 2


def test_the_command_prints_a_table_and_writes_figures(rng, tmp_path, capsys):
    path = tmp_path / "heads.pt"
    save_calls([dataclasses.replace(call, layer=5) for call in run_of(rng, range(4), 0.1)], path)
    words = ["bench", "cached", "--captured", str(path), "--tiles", "16", "8", "--repeats", "1"]
    assert main([*words, "--variants", "adaptive", "--output", str(tmp_path / "out")]) == 0
    assert "refreshed every 10 steps" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "cached.json").read_text())
    assert list(report["summary"]) == ["adaptive"]
    assert main([*words, "--variants", "none"]) == 2
    assert "'exact mass'" in capsys.readouterr().err
