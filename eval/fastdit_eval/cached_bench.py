"""What reusing masks costs and saves: the cached method beside its source, recomputed in every step of a captured run.

Errors are those of the masks alone, `|o - o*| / |o*|` in fp32 against dense attention, mean over rows and heads.
Seconds are those of the selection. Moving queries, keys and values into tile order, which both need, is not counted.
Nor is settling the orders of heads: that happens once in a run, however long it is and whether masks are reused or not.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fastdit import AdaptiveConfig, CachedConfig, PyramidConfig
from fastdit.attend import choose_tiles
from fastdit.capture import CapturedCall
from fastdit.errors import ConfigError
from fastdit.key_orders import OrderedQuery, Selection
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.run_memory import RunMemory
from fastdit.spans import SpanTimer, now, span
from fastdit.statistics import ReuseRecord
from fastdit_kernels import block_sparse_attention, gather_tokens
from fastdit_kernels.bench_machine import describe_machine


def cached_variants(density: float, refresh_every: int, q_tile: int, kv_tile: int) -> dict[str, CachedConfig]:
    """What is compared: the cached method over each source at one density, with its staleness test as by default.

    Tiles lie still: where they are shifted the fresh masks of a step have others than those that are kept.
    """
    shared = {"q_tile": q_tile, "kv_tile": kv_tile, "min_tokens": 0}
    adaptive = AdaptiveConfig(density=density, q_tile=q_tile, kv_tile=kv_tile, min_tokens=0)
    sources: dict[str, Callable[[], CachedConfig]] = {
        "adaptive": lambda: CachedConfig(source=adaptive, refresh_every=refresh_every),
        "adaptive sampled": lambda: CachedConfig(
            source=dataclasses.replace(adaptive, estimator="sampled"), refresh_every=refresh_every
        ),
        "adaptive auto pooled": lambda: CachedConfig(
            source=dataclasses.replace(adaptive, order="auto", complement="auto", estimator="rows"),
            refresh_every=refresh_every,
        ),
        "exact mass": lambda: CachedConfig(source=adaptive, mass="exact", refresh_every=refresh_every),
        "pyramid": lambda: CachedConfig(
            source=PyramidConfig(density=density, **shared),  # type: ignore[arg-type]  # all of them are ints
            refresh_every=refresh_every,
        ),
    }
    return {name: dataclasses.replace(make(), shift_tiles=False) for name, make in sources.items()}


def run_cached_bench(
    calls: Sequence[CapturedCall], variants: dict[str, CachedConfig], *, repeats: int = 3
) -> dict[str, Any]:
    """Follow captured runs step by step, with reuse and without.

    Args:
        calls: Captured calls of consecutive steps, several layers and runs as they were captured.
        variants: Cached configs by name.
        repeats: Times every run is followed; of the seconds the median counts.

    Returns:
        Plain data: environment, one entry for each variant, layer, run and step, and a summary for each variant.
    """
    runs = runs_of(calls)
    cases = []
    for name, config in variants.items():
        for (transformer, layer, number), run in runs.items():
            place = {"variant": name, "transformer": transformer, "layer": layer, "run": number}
            cases += [{**place, **case} for case in follow(run, config, repeats)]
    return {
        "environment": describe_machine(torch.device("cpu")),
        "variants": {name: config.to_dict() for name, config in variants.items()},
        "cases": cases,
        "summary": {name: summarize([case for case in cases if case["variant"] == name]) for name in variants},
    }


def runs_of(calls: Sequence[CapturedCall]) -> dict[tuple[int, int, int], list[CapturedCall]]:
    """Calls by (transformer, layer, run): a run ends where the step does not go on by one.

    Raises:
        ConfigError: No run has two steps.
    """
    runs: dict[tuple[int, int, int], list[CapturedCall]] = {}
    number: dict[tuple[int, int], int] = defaultdict(int)
    for call in calls:
        place = call.transformer, call.layer
        run = runs.setdefault((*place, number[place]), [])
        if run and (call.step != run[-1].step + 1 or call.grid != run[-1].grid):
            number[place] += 1
            run = runs.setdefault((*place, number[place]), [])
        run.append(call)
    found = {place: run for place, run in runs.items() if len(run) > 1}
    if not found:
        raise ConfigError("no consecutive steps are captured: run `fastdit bench capture` with --steps 2 3 4 ...")
    return found


def follow(run: Sequence[CapturedCall], config: CachedConfig, repeats: int) -> list[dict[str, Any]]:
    """One entry for each step of a run of one layer."""
    fresh = dataclasses.replace(config, refresh_every=1, min_recall=None)
    cache = MaskCache()
    # Token orders are made once per geometry; no step is charged for them.
    _choose(run[0], fresh, cache, RunMemory())
    passes: list[list[dict[str, Any]]] = []
    for number in range(repeats):
        settled = RunMemory()
        first, again = (_choose(run[0], fresh, cache, settled)[0] for _ in range(2))
        reused, recomputed = RunMemory(), RunMemory()
        reused.orders = recomputed.orders = settled.orders
        found: list[dict[str, Any]] = []
        for call in run:
            case: dict[str, Any] = {"step": call.step, "settle_seconds": 0.0}
            if not found and len(settled.orders):
                case["settle_seconds"] = max(0.0, first - again)
            q, k, v = _tensors(call)
            start = now()
            exact = F.scaled_dot_product_attention(q, k, v)
            case["dense_seconds"] = now() - start
            sides = [("cached", config, reused), ("fresh", fresh, recomputed)]
            # In turns, because the second one finds warm caches.
            for label, one, memory in sides if number % 2 else sides[::-1]:
                case[f"{label}_seconds"], query, chosen, record = _choose(call, one, cache, memory)
                if number == 0:
                    case[f"{label}_error"], case[f"{label}_density"] = _error(exact, query, chosen, config)
                if label == "cached":
                    case.update(age=record.age, built=record.built, refreshed_heads=record.refreshed_heads)
            found.append(case)
        passes.append(found)
    for label in ("cached_seconds", "fresh_seconds", "dense_seconds", "settle_seconds"):
        for place, case in enumerate(passes[0]):
            case[label] = statistics.median(found[place][label] for found in passes)
    return passes[0]


def _tensors(call: CapturedCall) -> list[torch.Tensor]:
    return [x[None].float() for x in (call.query, call.key, call.value)]


def _choose(
    call: CapturedCall, config: CachedConfig, cache: MaskCache, memory: RunMemory
) -> tuple[float, OrderedQuery, Selection, ReuseRecord]:
    """One selection and its seconds, without those of moving tokens."""
    q, k, v = _tensors(call)
    site = CallSite(call.transformer, call.layer, call.branch, call.step)
    with SpanTimer() as timer, span("selection"):
        query, chosen, record = choose_tiles(q, k, v, call.grid, config, cache, memory, site)
    assert record is not None, "the cached method keeps records"
    return timer.seconds["selection"], query, chosen, record


def _error(exact: torch.Tensor, query: OrderedQuery, chosen: Selection, config: CachedConfig) -> tuple[float, float]:
    """Mean relative error of the output under a mask, and its density."""
    tensors = query.tokens, chosen.key, chosen.value
    out = block_sparse_attention(*tensors, chosen.mask, first_order_rows=config.first_order_rows)
    error = (gather_tokens(out, query.inverse) - exact).norm(dim=-1) / exact.norm(dim=-1)
    return float(error.mean()), chosen.mask.density()


def summarize(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Error and cost of reuse as shares of those of recomputing, over all steps and by the age of the masks."""

    def share(label: str, some: Sequence[dict[str, Any]]) -> float:
        return float(sum(case[f"cached_{label}"] for case in some) / sum(case[f"fresh_{label}"] for case in some))

    ages = sorted({case["age"] for case in cases})
    fresh_seconds = statistics.fmean(case["fresh_seconds"] for case in cases)
    runs = sum(case["settle_seconds"] > 0 for case in cases)
    return {
        "cached_error": statistics.fmean(case["cached_error"] for case in cases),
        "fresh_error": statistics.fmean(case["fresh_error"] for case in cases),
        "error_ratio": share("error", cases),
        "cost_ratio": share("seconds", cases),
        "cost_of_dense": sum(case["cached_seconds"] for case in cases) / sum(case["dense_seconds"] for case in cases),
        "fresh_seconds": fresh_seconds,
        "settling_in_selections": sum(case["settle_seconds"] for case in cases) / max(1, runs) / fresh_seconds,
        "density": statistics.fmean(case["cached_density"] for case in cases),
        "refreshed_heads": sum(case["refreshed_heads"] for case in cases),
        "error_ratio_by_age": {str(age): share("error", [c for c in cases if c["age"] == age]) for age in ages},
        "cost_ratio_by_age": {str(age): share("seconds", [c for c in cases if c["age"] == age]) for age in ages},
    }
