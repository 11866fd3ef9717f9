"""Calls of a transformer with random weights: dense and by every method, in turn in one process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fastdit
from fastdit.adapters import find_adapter
from fastdit.config import AttentionConfig, CachedConfig
from fastdit_eval.bench_methods import refreshes
from fastdit_eval.peak_memory import peak_memory


@dataclass
class CallTimes:
    """Calls of one kind.

    Args:
        seconds: Of each call.
        layers: Seconds of its self-attention layers together, their projections included.
        peak_bytes: Peak memory over weights and whatever else was there before, of the last call.
    """

    seconds: list[float] = field(default_factory=list)
    layers: list[float] = field(default_factory=list)
    peak_bytes: int = 0


class CallTimer:
    """Times calls and the self-attention layers within them; no layer waits for another on a GPU.

    Args:
        transformer: A supported one.
        device: Where it is. With one CPU thread the clock is the CPU time of the process.
    """

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        self._device = device
        single = device.type == "cpu" and torch.get_num_threads() == 1
        self._clock = time.process_time if single else time.perf_counter
        self._marks: list[Any] = []
        self._sites = [site for _, site in find_adapter(transformer).sites(transformer)]

    def __call__(self, call: Callable[[], object], times: CallTimes) -> None:
        """Run `call` and add what it took."""
        hooks = [site.register_forward_pre_hook(lambda *_: self._mark()) for site in self._sites]
        hooks += [site.register_forward_hook(lambda *_: self._mark()) for site in self._sites]
        try:
            self._wait()
            if self._device.type == "cuda":
                before = torch.cuda.memory_allocated(self._device)
                torch.cuda.reset_peak_memory_stats(self._device)
            start = self._clock()
            call()
            self._wait()
            times.seconds.append(self._clock() - start)
            if self._device.type == "cuda":
                times.peak_bytes = torch.cuda.max_memory_allocated(self._device) - before
            times.layers.append(self._layer_seconds())
        finally:
            for hook in hooks:
                hook.remove()
            self._marks.clear()

    def _mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(self._clock())

    def _layer_seconds(self) -> float:
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if self._device.type == "cuda":
            return float(sum(start.elapsed_time(end) for start, end in pairs)) / 1000
        return float(sum(end - start for start, end in pairs))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@torch.no_grad()
def measure_steps(
    transformer: nn.Module,
    call: Callable[[], object],
    configs: dict[str, AttentionConfig],
    repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """Time dense calls and calls of every method, all in turn in each round.

    Args:
        transformer: A supported transformer, not enabled.
        call: Runs it for one video of one guidance branch: a denoising step without guidance.
        configs: Methods by name, sparse in every step and layer.
        repeats: Rounds; medians count.
        device: Where the transformer is.

    Returns:
        `dense` and `methods`. A sparse step is one after the first of a run, in which orders of heads are settled; that
        one is `first_seconds`. The cached method's is the mean over the steps that a mask serves.
    """
    timer, dense = CallTimer(transformer, device), CallTimes()
    kinds: dict[str, dict[str, CallTimes]] = {
        name: {kind: CallTimes() for kind in _kinds(config)} for name, config in configs.items()
    }
    densities: dict[str, float] = {}
    call()
    for _ in range(repeats):
        timer(call, dense)
        for name, config in configs.items():
            with fastdit.enable(transformer, _often(config)) as session:
                for kind, times in kinds[name].items():
                    timer(call, times)
                    if device.type == "cpu" and not times.peak_bytes and kind == "build":
                        times.peak_bytes = peak_memory(call, device)
                densities[name] = session.stats.density() or 0.0
    if device.type == "cpu":
        dense.peak_bytes = peak_memory(call, device)
    step = _median(dense.seconds)
    methods = {
        name: {**_method_figures(config, kinds[name], dense), "density": densities[name]}
        for name, config in configs.items()
    }
    return {
        "dense": {
            "seconds": _spread(dense.seconds),
            "attention_layers_seconds": _median(dense.layers),
            "attention_layers_share": _median(dense.layers) / step,
            "peak_memory_bytes": dense.peak_bytes,
        },
        "methods": methods,
    }


def _often(config: AttentionConfig) -> AttentionConfig:
    """The cached method with masks built in every second step, so that few calls show both kinds of steps."""
    return dataclasses.replace(config, refresh_every=2) if isinstance(config, CachedConfig) else config


def _kinds(config: AttentionConfig) -> tuple[str, ...]:
    """The first calls of a run."""
    return ("first", "reuse", "build") if isinstance(config, CachedConfig) else ("first", "build")


def _method_figures(config: AttentionConfig, times: dict[str, CallTimes], dense: CallTimes) -> dict[str, Any]:
    built = 1 / refreshes(config)
    reuse = times.get("reuse", times["build"])

    def mean(values: str) -> list[float]:
        pairs = zip(getattr(times["build"], values), getattr(reuse, values), strict=True)
        return [built * one + (1 - built) * other for one, other in pairs]

    seconds, layers = mean("seconds"), mean("layers")
    ratios = [one / other for one, other in zip(dense.seconds, seconds, strict=True)]
    return {
        "seconds": _spread(seconds),
        "first_seconds": min(times["first"].seconds),
        "build_seconds": _median(times["build"].seconds),
        "reuse_seconds": _median(reuse.seconds),
        "attention_layers_seconds": _median(layers),
        "attention_layers_share": _median(layers) / _median(seconds),
        "step_speedup": _median(ratios),
        "step_speedup_range": [min(ratios), max(ratios)],
        "attention_layers_speedup": _median(dense.layers) / _median(layers),
        "peak_memory_bytes": max(one.peak_bytes for one in times.values()),
    }


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": _median(values), "min": min(values), "max": max(values), "each": list(values)}
