"""Dense and sparse runs timed in turn in one process: end to end, by stage, memory, density."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fastdit.spans import SPANS, SpanTimer
from fastdit.statistics import RunStatistics
from fastdit_eval.stage_times import STAGES, StageTimer

SCHEMA = "speed/1"
# What is entered around each run, given "dense" or "sparse"; and what makes the runs: that, and how many pairs.
Around = Callable[[str], AbstractContextManager[object]]
RunPairs = Callable[[Around, int], Any]


class _Watch:
    """Stage times and, on CUDA, peak memory of every run, by kind."""

    def __init__(self, pipe: Any, layers: bool) -> None:
        self.pipe, self.layers = pipe, layers
        self.stages: dict[str, list[dict[str, float]]] = {"dense": [], "sparse": []}
        self.peaks: dict[str, int] = {}
        self.spans: dict[str, dict[str, float]] = {}

    @contextmanager
    def around(self, kind: str) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with StageTimer(self.pipe, self.layers) as timer, SpanTimer() if self.layers else nullcontext() as spans:
            yield
        if spans is not None:
            self.spans[kind] = spans.seconds
        self.stages[kind].append(timer.seconds)
        if torch.cuda.is_available():
            self.peaks[kind] = max(self.peaks.get(kind, 0), torch.cuda.max_memory_allocated())


def measure_speed(pipe: Any, run_pairs: RunPairs, repeats: int) -> tuple[dict[str, Any], Any]:
    """Time pairs of a dense and a sparse run, after a warm-up; then one pair more with every attention layer timed.

    In that pair choosing tiles, bringing tokens into their order and back, and the kernel are told apart
    (`attention_seconds`); the rest of the layers is projections and dense calls.

    Args:
        pipe: The pipeline that `run_pairs` calls.
        run_pairs: Runs pairs in turn and returns a `Comparison` of `fastdit_pipelines.generation`.
        repeats: Timed pairs.

    Returns:
        The report, plain data; and the comparison, for its frames.
    """
    watch, layered = _Watch(pipe, layers=False), _Watch(pipe, layers=True)
    result = run_pairs(watch.around, repeats)
    run_pairs(layered.around, 1)
    seconds = {"dense": result.dense_seconds, "sparse": result.sparse_seconds}
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "repeats": repeats,
        "speedup": statistics.median(ratios),
        "speedup_of_each_pair": ratios,
        "seconds": {kind: _spread(values) for kind, values in seconds.items()},
        "stages": {kind: _stages(watch.stages[kind], values) for kind, values in seconds.items()},
        **_attention_parts(layered),
        "peak_memory_bytes": watch.peaks or {"process": _process_peak()},
        "density": result.density,
        "density_cells": density_cells(result.stats),
        "dense_calls": result.stats.dense_reasons(),
        "summary": result.summary,
    }
    return report, result


def _attention_parts(layered: _Watch) -> dict[str, Any]:
    """Seconds of the parts of the attention layers, and their shares of denoising."""
    seconds: dict[str, dict[str, float]] = {}
    shares: dict[str, dict[str, float]] = {"attention_share": {}, "selection_share": {}, "gather_share": {}}
    for kind, runs in layered.stages.items():
        parts = {name: layered.spans[kind].get(name, 0.0) for name in SPANS}
        layers, whole = runs[0].get("attention_layers", 0.0), runs[0]["denoising"]
        seconds[kind] = {**parts, "rest of the layers": layers - sum(parts.values())}
        shares["attention_share"][kind] = layers / whole
        shares["selection_share"][kind] = parts["selection"] / whole
        shares["gather_share"][kind] = parts["gather"] / whole
    return {"attention_seconds": seconds, **shares}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "each": list(values)}


def _stages(runs: Sequence[dict[str, float]], totals: Sequence[float]) -> dict[str, float]:
    """Median seconds of each stage, and of the rest of the call."""
    found = {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in STAGES}
    rest = [total - sum(run.get(stage, 0.0) for stage in STAGES) for run, total in zip(runs, totals, strict=True)]
    return {**found, "other": statistics.median(rest)}


def density_cells(stats: RunStatistics) -> list[list[list[float]]]:
    """`[layer, step, density]` of every transformer, from the statistics of a run."""
    numbers = sorted({record.transformer for record in stats.records.values()})
    return [
        [[layer, step, value] for (layer, step), value in sorted(stats.layer_step_density(number).items())]
        for number in numbers
    ]


def _process_peak() -> int:
    """Largest resident memory of this process so far: on a CPU dense and sparse cannot be told apart."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins at the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
