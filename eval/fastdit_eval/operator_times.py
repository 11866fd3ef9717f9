"""One self-attention operator alone: dense, and sparse as in the middle of a run, whole and in its parts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from fastdit.attend import attend_ordered, choose_tiles, sparse_step
from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.key_orders import keys_in_order, put_back
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.run_memory import RunMemory
from fastdit_eval.bench_methods import refreshes
from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.bench import time_together
from fastdit_kernels.bench_baselines import Dense, dense_baselines, working_baselines
from fastdit_kernels.tiled_tokens import TiledTokens

Runs = dict[str, Callable[[], object]]
# Never the fastest, and slow to compile or short of memory at the lengths of real models.
NOT_TRIED = ("SDPA math", "flex_attention")


class SteadyCall:
    """The second call of one layer in a run: orders of heads are settled, a cached mask is reused.

    Args:
        tensors: Query, key and value `[B, S, H, D]`.
        grid: Geometry.
        config: The method, one for all heads.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], grid: VideoGrid, config: AttentionConfig) -> None:
        self._tensors, self._grid, self._config = tensors, grid, config
        self._cache, self._memory = MaskCache(), RunMemory()
        self._call(0)

    def _call(self, step: int) -> torch.Tensor:
        query, key, value = self._tensors
        site = CallSite(0, 0, "cond", step)
        return sparse_step(query, key, value, self._grid, self._config, self._cache, self._memory, site).out

    def __call__(self) -> torch.Tensor:
        """Output `[B, S, H, D]` of the whole operator."""
        return self._call(1)

    def parts(self) -> tuple[Runs, BlockMask]:
        """What to time: `choose`, which moves tokens too, `gather`, `kernel` and `scatter`; and the mask."""
        query, key, value = (x.transpose(1, 2) for x in self._tensors)
        site = CallSite(0, 0, "cond", 1)

        def choose() -> Any:
            return choose_tiles(query, key, value, self._grid, self._config, self._cache, self._memory, site)

        q, chosen, _ = choose()

        def attend() -> tuple[torch.Tensor, TileLayout]:
            return attend_ordered(q, chosen, self._config)

        out = attend()

        def gather() -> list[object]:
            return [
                TiledTokens.in_order(query, q.order, chosen.mask.q_layout),
                keys_in_order(key, value, chosen.order, chosen.mask.kv_layout),
            ]

        runs: Runs = {
            "choose": choose,
            "gather": gather,
            "kernel": attend,
            "scatter": lambda: put_back(*out, q),
        }
        return runs, chosen.mask


def dense_runs(tensors: Sequence[torch.Tensor]) -> tuple[dict[str, Dense], dict[str, str]]:
    """Dense kernels that take these `[B, S, H, D]`, without a mask, and why others do not."""
    query, key, value = (x.transpose(1, 2) for x in tensors)
    found = dense_baselines(query.device, query.dtype)
    left_out = {name: "not tried" for name in NOT_TRIED if name in found}
    working, failed = working_baselines({n: run for n, run in found.items() if n not in left_out}, query, key, value)
    return working, left_out | failed


@torch.no_grad()
def time_operator(
    tensors: Sequence[torch.Tensor], grid: VideoGrid, configs: dict[str, AttentionConfig], repeats: int
) -> dict[str, Any]:
    """Seconds of dense attention and of every method, all in turn in each round.

    Args:
        tensors: Query, key and value `[B, S, H, D]`.
        grid: Geometry.
        configs: Methods by name.
        repeats: Rounds after one of warm-up; medians count.

    Returns:
        `dense` with the seconds of each kernel; `best_dense`, `best_dense_seconds`; and `methods`: for each `seconds`
        of the whole operator in a call in the middle of a run (for the cached method the mean over the steps that a
        mask serves), the parts `select`, `gather`, `kernel` and `scatter`, the `speedup` over the best dense kernel
        with its range over the rounds, and the `density`.
    """
    query, key, value = (x.transpose(1, 2) for x in tensors)
    dense, left_out = dense_runs(tensors)
    runs: Runs = {f"dense/{name}": partial(run, query, key, value) for name, run in dense.items()}
    masks, calls = {}, {}
    for name, config in configs.items():
        for place, one in _kinds(config).items():
            calls[name, place] = SteadyCall(tensors, grid, one)
            parts, masks[name, place] = calls[name, place].parts()
            runs[f"{name}/{place}/whole"] = calls[name, place]
            runs |= {f"{name}/{place}/{part}": run for part, run in parts.items()}
    times = time_together(runs, repeats, query.device)
    dense_times = {name: times[f"dense/{name}"] for name in dense}
    best = min(dense_times, key=lambda name: statistics.median(dense_times[name]))
    methods = {}
    for name, config in configs.items():
        weights = _weights(config)
        mean = {
            part: [
                sum(share * times[f"{name}/{place}/{part}"][turn] for place, share in weights.items())
                for turn in range(repeats)
            ]
            for part in ("whole", "choose", "gather", "kernel", "scatter")
        }
        density = sum(share * masks[name, place].density() for place, share in weights.items())
        methods[name] = {**_figures(mean, dense_times[best]), "density": density}
    return {
        "dense_seconds": {name: statistics.median(values) for name, values in dense_times.items()},
        "dense_left_out": left_out,
        "best_dense": best,
        "best_dense_seconds": statistics.median(dense_times[best]),
        "methods": methods,
    }


def _kinds(config: AttentionConfig) -> dict[str, AttentionConfig]:
    """Calls in the middle of a run: those that build their mask, and those that reuse one."""
    if isinstance(config, CachedConfig):
        return {"build": config.source, "reuse": config}
    return {"build": config}


def _weights(config: AttentionConfig) -> dict[str, float]:
    steps = refreshes(config)
    return {"build": 1 / steps, "reuse": 1 - 1 / steps} if steps > 1 else {"build": 1.0}


def _figures(times: dict[str, list[float]], dense: list[float]) -> dict[str, Any]:
    median = {part: statistics.median(values) for part, values in times.items()}
    select = max(0.0, median.pop("choose") - median["gather"])
    whole = median.pop("whole")
    ratios = [one / other for one, other in zip(dense, times["whole"], strict=True)]
    parts = {"select": select, **median}
    return {
        "seconds": whole,
        "parts_seconds": parts,
        "select_share": select / whole,
        "move_share": (parts["gather"] + parts["scatter"]) / whole,
        "select_share_of_dense": select / statistics.median(dense),
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
    }
