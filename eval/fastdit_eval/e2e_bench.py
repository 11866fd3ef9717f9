"""What every method gains on a whole transformer call: measured, beside what was expected before it ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdit.config import AttentionConfig
from fastdit.forecast import forecast_run
from fastdit.gain_forecast import GainForecast, forecast_gain
from fastdit.grid import VideoGrid
from fastdit.schedule import Schedule
from fastdit_eval.bench_methods import bench_config, random_heads
from fastdit_eval.operator_times import time_operator
from fastdit_eval.step_bench import measure_steps

SCHEMA = "e2e/1"
# What the projection of a whole run leaves dense: the defaults of every method.
PROJECTED = Schedule()


@dataclass(frozen=True, kw_only=True)
class ModelTask:
    """One model at one size.

    Args:
        transformer: With random weights, not enabled.
        call: Runs it once.
        grid: Geometry of the call.
        heads: Self-attention heads.
        head_dim: Their width.
        layers: Self-attention layers.
        flops: Of a dense call: of self-attention, and of its other matrix products.
        num_inference_steps: Of the run that is projected.
        dtype: Of the call.
        device: Where it runs.
        card: What forecasts go by, a name of `fastdit.search.cards.CARDS`; `None` if it is not known.
    """

    transformer: nn.Module
    call: Callable[[], object]
    grid: VideoGrid
    heads: int
    head_dim: int
    layers: int
    flops: tuple[float, float]
    num_inference_steps: int
    dtype: torch.dtype
    device: torch.device
    card: str | None


def forecast_methods(task: ModelTask, configs: dict[str, AttentionConfig]) -> dict[str, GainForecast]:
    """What is expected of every method, by the sizes alone."""
    found = {}
    for name, config in configs.items():
        run = forecast_run(config, task.grid, task.layers, task.heads, task.num_inference_steps)
        found[name] = forecast_gain(config, task.grid, run, task.head_dim, task.flops, task.card)
    return found


def bench_model(
    task: ModelTask, methods: Sequence[str], densities: Sequence[float], repeats: int, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Measure one model at one size.

    Args:
        task: The model.
        methods: Names of `bench_methods.BENCH_METHODS`.
        densities: Share of key tiles, each with every method.
        repeats: Rounds of all contestants in turn; medians count.
        warn: Told before anything runs which methods are expected not to pay.

    Returns:
        Plain data: `dense` and one case for each method and density.
    """
    wanted = {f"{method} {density:g}": (method, density) for density in densities for method in methods}
    configs = {name: bench_config(method, density, task.grid) for name, (method, density) in wanted.items()}
    forecasts = forecast_methods(task, configs)
    for name, forecast in forecasts.items():
        if forecast.warning() is not None:
            warn(f"{name}: {forecast.warning()}")
    steps = measure_steps(task.transformer, task.call, configs, repeats, task.device)
    tensors = random_heads(task.grid, task.heads, task.head_dim, task.dtype, task.device)
    operator = time_operator(tensors, task.grid, configs, repeats)
    dense = steps["dense"]
    attention = task.layers * operator["best_dense_seconds"]
    cases = [
        {
            "method": wanted[name][0],
            "density_asked": wanted[name][1],
            **steps["methods"][name],
            "tokens_per_second": task.grid.length / steps["methods"][name]["seconds"]["median"],
            "attention_share": min(1.0, _operator_share(task, operator["methods"][name], steps["methods"][name])),
            "attention_speedup": operator["methods"][name]["speedup"],
            "attention_speedup_range": operator["methods"][name]["speedup_range"],
            "operator": operator["methods"][name],
            "projection": project_run(task, dense, steps["methods"][name]),
            "forecast": describe_forecast(forecasts[name], steps["methods"][name]["step_speedup"]),
            "config": configs[name].to_dict(),
        }
        for name in configs
    ]
    return {
        "tokens": task.grid.length,
        "grid": [task.grid.frames, task.grid.height, task.grid.width],
        "text_tokens": task.grid.text_length,
        "attention_shape": [1, task.heads, task.grid.length, task.head_dim],
        "layers": task.layers,
        "dtype": str(task.dtype).removeprefix("torch."),
        "dense": {
            **dense,
            "tokens_per_second": task.grid.length / dense["seconds"]["median"],
            "attention_share": min(1.0, attention / dense["seconds"]["median"]),
            "operator_kernel": operator["best_dense"],
            "operator_seconds": operator["dense_seconds"],
            "operator_left_out": operator["dense_left_out"],
        },
        "cases": cases,
    }


def _operator_share(task: ModelTask, operator: dict[str, Any], step: dict[str, Any]) -> float:
    return float(task.layers * operator["seconds"] / step["seconds"]["median"])


def project_run(task: ModelTask, dense: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """The speed-up of all transformer calls of a run, computed from the measured steps, not measured itself.

    Args:
        task: The model.
        dense: Figures of dense steps.
        method: Figures of steps that are sparse in every layer.
    """
    steps = task.num_inference_steps
    dense_steps = PROJECTED.resolve_dense_steps(steps)
    dense_layers = sum(PROJECTED.is_dense_layer(layer, task.layers) for layer in range(task.layers))
    whole, sparse = dense["seconds"]["median"], method["seconds"]["median"]
    per_layer = (dense["attention_layers_seconds"] - method["attention_layers_seconds"]) / task.layers
    # The first sparse step settles the orders of heads, once in a run.
    settling = max(0.0, method["first_seconds"] - sparse)
    run = dense_steps * whole + (steps - dense_steps) * (sparse + dense_layers * per_layer) + settling
    step_density = (method["density"] * (task.layers - dense_layers) + dense_layers) / task.layers
    return {
        "is_projection": True,
        "num_inference_steps": steps,
        "dense_steps": dense_steps,
        "dense_layers": dense_layers,
        "speedup": steps * whole / run,
        "density": (dense_steps + (steps - dense_steps) * step_density) / steps,
    }


def describe_forecast(forecast: GainForecast, measured: float) -> dict[str, Any]:
    """The forecast as plain data, and whether it gave warning of what came.

    Args:
        forecast: Made before the run.
        measured: Speed-up of a step.
    """
    warning = forecast.warning()
    return {
        "attention_speedup": forecast.attention,
        "step_speedup": forecast.step,
        "warning": warning,
        "slower_without_warning": measured < 1 and warning is None,
        "source": forecast.source,
    }
