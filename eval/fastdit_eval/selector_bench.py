"""The yardstick of selectors: error, recall, density, coverage and cost of each on heads of known structure.

Everything is fp32. The error of a query row is `|o - o*| / |o*|` against dense attention; `error` is its mean over rows
and heads. `recall` is the share of true softmax mass on tokens that are represented at any level, mean over rows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastdit
import fastdit_eval
import fastdit_kernels
from fastdit.plan_reading import sha256
from fastdit.recall import recall_given_lse
from fastdit.search.identity import fingerprint
from fastdit.search.results import Arrays, ResultFolder
from fastdit_eval.attention_heads import AttentionHeads
from fastdit_eval.selection_flops import matmul_flops
from fastdit_eval.selector_baselines import BASELINES
from fastdit_eval.selector_methods import method_selectors
from fastdit_eval.selector_task import Answer, Selector, SelectorTask
from fastdit_eval.source_hash import hash_sources
from fastdit_kernels import block_sparse_attention, gather_tokens, scatter_tokens
from fastdit_kernels.bench import time_together
from fastdit_kernels.bench_machine import describe_machine

DENSITIES = (0.05, 0.08, 0.15, 0.3, 0.5)
BISECTIONS = 14
# An answer counts for a density if it is at most this much above it.
TOLERANCE = 1.05


def run_selector_bench(
    groups: Sequence[Callable[[], AttentionHeads]],
    *,
    densities: Sequence[float] = DENSITIES,
    q_tile: int = 128,
    kv_tile: int = 64,
    repeats: int = 3,
    selectors: Sequence[Selector] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    case_folder: Path | None = None,
) -> dict[str, Any]:
    """Measure every selector on every group of heads at every density.

    Args:
        groups: Makers of the heads, one group held in memory at a time.
        densities: Densities asked for; each is rounded to whole key tiles per row, for all selectors alike.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile, a multiple of 8.
        repeats: Timed runs of each selection; the median counts.
        selectors: What to measure; default all registered methods and all baselines.
        progress: Called with cases done, cases in all and the name of the group.
        case_folder: Finished cases are kept here; a measurement that was stopped goes on with the next ones. To be
            removed once the report is written.

    Returns:
        Plain data: environment, settings, selectors, and one entry for each group, selector and density.

    Raises:
        ConfigError: The folder holds cases of other settings.
        ValueError: A figure is NaN or infinite, which no report may hold.
    """
    chosen = [*method_selectors(), *BASELINES] if selectors is None else list(selectors)
    environment = describe_machine(torch.device("cpu"))
    settings = {"q_tile": q_tile, "kv_tile": kv_tile, "densities": list(densities), "repeats": repeats}
    lasting = {name: value for name, value in environment.items() if name not in ("load_average", "commit")}
    code = hash_sources([fastdit, fastdit_kernels, fastdit_eval])
    kept = ResultFolder(case_folder, {"environment": lasting, "code": code, **settings})
    cases: list[dict[str, Any]] = []
    shapes = {}
    total = len(groups) * len(chosen) * len(densities)
    for make in groups:
        task = SelectorTask(make(), q_tile, kv_tile)
        heads = task.heads
        tensors = fingerprint([heads.query, heads.key, heads.value])
        shapes[heads.name] = {"shape": list(heads.query.shape), "grid": vars(heads.grid)}
        for selector in chosen:
            if progress is not None:
                progress(len(cases), total, heads.name)
            name = sha256([heads.name, vars(heads.grid), tensors, selector.name, selector.source])
            found = kept.get(name, partial(_measure_all, task, selector, densities, repeats))
            cases += json.loads(str(found["cases"]))
    return {
        "environment": environment,
        "settings": settings,
        "groups": shapes,
        "selectors": [{"name": s.name, "kind": s.kind, "source": s.source} for s in chosen],
        "cases": cases,
        "mean_error": mean_errors(cases),
    }


def _measure_all(task: SelectorTask, selector: Selector, densities: Sequence[float], repeats: int) -> Arrays:
    """The cases of one selector on one group, as one text."""
    # Only here, so that a group whose cases are all known costs nothing.
    task.prepare()
    cases = [measure(task, selector, density, repeats) for density in densities]
    return {"cases": np.array(json.dumps(cases, allow_nan=False))}


def measure(task: SelectorTask, selector: Selector, density: float, repeats: int) -> dict[str, Any]:
    """One entry of the report: a selector on one group at one density."""
    target = task.tiles_at(density) / task.kv_layout.num_tiles
    knob = target if selector.knob is None else bisect_knob(task, selector, target)
    select = partial(selector.select, task, knob, target)
    answer = select()
    runs: dict[str, Callable[[], object]] = {"select": select, "dense": task.dense}
    task.is_timed = True
    times = time_together(runs, repeats, torch.device("cpu"))
    seconds = statistics.median(times["select"])
    dense_seconds = statistics.median(times["dense"])
    flops, dense_flops = matmul_flops(select), matmul_flops(task.dense)
    task.is_timed = False
    used = answer.mask.density()
    return {
        "group": task.heads.name,
        "selector": selector.name,
        "kind": selector.kind,
        "asked": density,
        "target": target,
        "density": used,
        "reached": used <= TOLERANCE * target,
        "knob": knob,
        **_quality(task, answer),
        "coverage": answer.mask.coverage(),
        "select_seconds": seconds,
        "dense_seconds": dense_seconds,
        "select_share_of_dense": seconds / dense_seconds,
        "select_flops": flops,
        "dense_flops": dense_flops,
        "select_flops_share_of_dense": flops / dense_flops,
    }


def bisect_knob(task: SelectorTask, selector: Selector, target: float) -> float:
    """Largest knob whose density is not above the target; the lower end of the range if none is."""
    assert selector.knob is not None, "only a knob with a range can be bisected"
    low, high = selector.knob

    def fits(knob: float) -> bool:
        return selector.select(task, knob, target).mask.density() <= target * (1 + 1e-6)

    if fits(high):
        return high
    if not fits(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _quality(task: SelectorTask, answer: Answer) -> dict[str, Any]:
    """Error and recall of an answer against exact attention."""
    heads, (exact, exact_lse) = task.heads, task.exact
    query = gather_tokens(heads.query, answer.q_order)
    out, lse = block_sparse_attention(
        query, answer.key, answer.value, answer.mask, first_order_rows=answer.first_order_rows, return_lse=True
    )
    difference = scatter_tokens(out, answer.q_order) - exact
    error = (difference.norm(dim=-1) / exact.norm(dim=-1)).mean(2)[0]
    ordered_lse = gather_tokens(exact_lse.unsqueeze(-1), answer.q_order).squeeze(-1)
    if answer.mask.kv_layout.num_levels == 1:
        recall = (lse - ordered_lse).exp().mean()
    else:
        recall = recall_given_lse(query, answer.key, ordered_lse, answer.mask).mean()
    return {
        "error": float(error.mean()),
        "error_by_head": error.tolist(),
        "error_l2": float(difference.norm() / exact.norm()),
        "recall": float(recall),
    }


def mean_errors(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean error over groups by selector and density asked for; `None` where a group's density was not reached."""
    table: dict[str, dict[str, list[float | None]]] = {}
    for case in cases:
        row = table.setdefault(case["selector"], {})
        row.setdefault(str(case["asked"]), []).append(case["error"] if case["reached"] else None)
    means: dict[str, dict[str, float | None]] = {}
    for name, row in table.items():
        means[name] = {}
        for density, errors in row.items():
            known = [error for error in errors if error is not None]
            means[name][density] = statistics.fmean(known) if len(known) == len(errors) else None
    return means
