"""How time and memory of one self-attention operator grow with the tokens: dense and every method, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import fastdit
from fastdit.config import AttentionConfig
from fastdit.environment import describe_environment
from fastdit.grid import VideoGrid
from fastdit_eval.bench_methods import SHARPNESS, bench_config, random_heads
from fastdit_eval.operator_times import SteadyCall, dense_runs, time_operator
from fastdit_eval.peak_memory import peak_memory
from fastdit_kernels.bench import time_together
from fastdit_kernels.bench_machine import describe_machine

SCHEMA = "growth/1"
Progress = Callable[[int, int, str], None]


def cubic_grid(tokens: int) -> VideoGrid:
    """A grid of about so many tokens whose sides are alike."""
    frames = max(1, round(tokens ** (1 / 3)))
    height = max(1, round((tokens / frames) ** 0.5))
    return VideoGrid(frames=frames, height=height, width=max(1, tokens // (frames * height)))


def run_growth_bench(
    *,
    tokens: Sequence[int],
    methods: Sequence[str],
    density: float,
    heads: int,
    head_dim: int,
    repeats: int,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every length, and fit `seconds = a * tokens ** exponent` over all of them.

    Args:
        tokens: Lengths, each met by the grid of nearly equal sides that comes nearest from below.
        methods: Names of `bench_methods.BENCH_METHODS`.
        density: Share of key tiles of all methods.
        heads: Heads of the one layer.
        head_dim: Their width.
        repeats: Timed rounds of all contestants in turn.
        device: Where to run: fp32 on a CPU, bf16 on a GPU.
        progress: Called with (lengths done, lengths in all, what is in work).

    Returns:
        Plain data: environment, settings, `cases` by length and contestant, `exponents` by contestant.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    machine = describe_machine(device)
    cases: list[dict[str, Any]] = []
    for done, asked in enumerate(tokens):
        if progress is not None:
            progress(done, len(tokens), f"{asked} tokens")
        grid = cubic_grid(asked)
        tensors = random_heads(grid, heads, head_dim, dtype, device)
        configs = {name: bench_config(name, density, grid) for name in methods}
        cases += _measure(tensors, grid, configs, repeats)
        del tensors
    return {
        "schema": SCHEMA,
        "environment": {**machine, "packages": describe_environment()["packages"]},
        "settings": {
            "density": density,
            "heads": heads,
            "head_dim": head_dim,
            "dtype": str(dtype).removeprefix("torch."),
            "repeats": repeats,
            "inputs": f"random, scores of standard deviation {SHARPNESS:g}",
        },
        "cases": cases,
        "exponents": {name: fit_exponents(cases, name) for name in ("dense", *methods)},
    }


def _measure(
    tensors: list[torch.Tensor], grid: VideoGrid, configs: dict[str, AttentionConfig], repeats: int
) -> list[dict[str, Any]]:
    """Cases of one length: dense first."""
    device = tensors[0].device
    times = time_operator(tensors, grid, configs, repeats)
    dense, _ = dense_runs(tensors)
    query, key, value = (x.transpose(1, 2) for x in tensors)
    best = dense[times["best_dense"]]
    place = {"tokens": grid.length, "grid": [grid.frames, grid.height, grid.width]}
    with torch.no_grad():
        memory = peak_memory(lambda: best(query, key, value), device)
    cases: list[dict[str, Any]] = [
        {
            **place,
            "name": "dense",
            "kernel": times["best_dense"],
            "seconds": times["best_dense_seconds"],
            "peak_bytes": memory,
            "density": 1.0,
        }
    ]
    for name, config in configs.items():
        with torch.no_grad():
            steady = SteadyCall(tensors, grid, config)
            memory = peak_memory(steady, device)
            alone = time_together({"alone": partial(_alone, tensors, grid, config)}, 1, device)["alone"][0]
        cases.append({**place, "name": name, **times["methods"][name], "peak_bytes": memory, "alone_seconds": alone})
    return cases


def _alone(tensors: list[torch.Tensor], grid: VideoGrid, config: AttentionConfig) -> torch.Tensor:
    """`fastdit.sparse_attention`, which settles orders and builds masks in every call."""
    query, key, value = (x.transpose(1, 2) for x in tensors)
    return fastdit.sparse_attention(query, key, value, config, grid=(grid.frames, grid.height, grid.width))[0]


def fit_exponents(cases: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    """Exponents of a contestant's seconds, selection and peak memory in the tokens; `None` for fewer than two lengths.

    Args:
        cases: All cases.
        name: The contestant.
    """
    mine = [case for case in cases if case["name"] == name]
    series = {
        "seconds": [case["seconds"] for case in mine],
        "select_seconds": [case.get("parts_seconds", {}).get("select", 0.0) for case in mine],
        "peak_bytes": [case["peak_bytes"] for case in mine],
    }
    lengths = [case["tokens"] for case in mine]
    return {key: fit_exponent(lengths, values) for key, values in series.items()}


def fit_exponent(lengths: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of the straight line through the logarithms, by least squares; `None` where there is no line."""
    if len(set(lengths)) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])
