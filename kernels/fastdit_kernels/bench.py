"""Times block-sparse against dense attention on this machine: `python -m fastdit_kernels.bench [--quick]`.

Correctness first, then time: a kernel that disagrees with the fp64 reference is not timed. Dense and sparse runs
alternate in one process; the figure is the median of the ratios of neighbouring runs, with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastdit_kernels.attention import block_sparse_attention
from fastdit_kernels.bench_baselines import dense_baselines, working_baselines
from fastdit_kernels.bench_check import check_kernel, random_inputs, random_mask
from fastdit_kernels.bench_machine import describe_machine
from fastdit_kernels.bench_shapes import CPU_SHAPES, MODEL_SHAPES, QUICK_SHAPES, ModelShape
from fastdit_kernels.block_mask import BlockMask
from fastdit_kernels.dispatch import resolve
from fastdit_kernels.pooling import pool_key_value
from fastdit_kernels.scores import tile_scores
from fastdit_kernels.selection import select_tiles
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.token_moves import gather_to_tiles, scatter_from_tiles

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
QUICK_DENSITIES = (0.1, 0.3)
POOLED_LEVELS = 4


def time_together(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every run, all in turn in each round, after one round of warm-up.

    On a CPU with one thread it is the CPU time of the process, which a busy machine disturbs least.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = clock()
            run()
            _wait(device)
            if repeat:
                times[name].append(clock() - start)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench_case(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    density: float,
    uneven: bool,
    tile: int,
    repeats: int,
    implementation: str = "auto",
    device: torch.device | None = None,
) -> dict[str, Any]:
    """One line of the result: the case, its error, the time of each kernel and the speed-up over the best dense one."""
    device = device or torch.device("cpu")
    query, key, value = random_inputs(shape, dtype, device)
    chosen = resolve(implementation, query, (tile, tile))
    error = check_kernel(chosen, shape[-1], dtype, uneven, tile, device)
    mask = random_mask(shape, tile, density, uneven).to(device)
    dense, left_out = working_baselines(dense_baselines(device, dtype), query, key, value)
    runs: dict[str, Callable[[], object]] = {name: partial(run, query, key, value) for name, run in dense.items()}
    runs["sparse"] = lambda: block_sparse_attention(query, key, value, mask, implementation=chosen)
    times = time_together(runs, repeats, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(dense, key=lambda name: medians[name])
    ratios = [a / b for a, b in zip(times[best], times["sparse"], strict=True)]
    pairs, pair_flops = mask.kept_pairs().double().mean().item() * shape[0] * shape[1], 4 * shape[-1]
    dense_flops = pair_flops * shape[0] * shape[1] * shape[2] ** 2
    sparse_tflops = pair_flops * pairs / medians["sparse"] / 1e12
    best_tflops = dense_flops / medians[best] / 1e12
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "tile": tile,
        "uneven_rows": uneven,
        "density": mask.density(),
        "implementation": chosen,
        "relative_error": error,
        "dense_seconds": {name: medians[name] for name in dense},
        "dense_left_out": left_out,
        "best_dense": best,
        "best_dense_tflops": best_tflops,
        "sparse_seconds": medians["sparse"],
        "sparse_kept_tflops": sparse_tflops,
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        # 1 means: a kept tile costs what it costs in the best dense kernel.
        "fraction_of_dense": statistics.median(ratios) * mask.density(),
        **{f"{name}_seconds": seconds for name, seconds in _overheads(query, key, value, mask, repeats).items()},
    }


def _overheads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, repeats: int
) -> dict[str, float]:
    """What a sparse call needs around the kernel: reordering, pooling and choosing the tiles."""
    layout = mask.kv_layout
    order = torch.randperm(query.shape[2], generator=torch.Generator().manual_seed(0)).to(query.device)
    pooled = TileLayout(layout.segments, layout.tile, POOLED_LEVELS)
    width = max(1, round(mask.density() * layout.num_tiles))

    def gather() -> None:
        buffers = [gather_to_tiles(x, order, layout) for x in (query, key, value)]
        scatter_from_tiles(buffers[0], order, layout)

    def pool() -> None:
        pool_key_value(key, value, pooled)

    def select() -> None:
        select_tiles(tile_scores(query, key, layout, layout), layout, layout, max_tiles=width)

    times = time_together({"gather": gather, "pool": pool, "select": select}, repeats, query.device)
    return {name: statistics.median(values) for name, values in times.items()}


def run_bench(
    *,
    device: torch.device,
    quick: bool = False,
    shapes: tuple[ModelShape, ...] | None = None,
    densities: tuple[float, ...] | None = None,
    repeats: int = 5,
    tile: int = 128,
    implementation: str = "auto",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """All shapes, dtypes, densities and kinds of rows on one device.

    Args:
        device: Where to run: the shapes of the supported models on CUDA, small ones on a CPU.
        quick: One small shape, two densities, fp32 (bf16 on CUDA): under a minute on one CPU core.
        shapes: Instead of the default ones.
        densities: Likewise.
        repeats: Timed rounds; the median counts.
        tile: Rows of query and key tiles.
        implementation: What to time.
        progress: Called with (cases done, cases in all, the shape in work).

    Returns:
        Plain data: `environment`, `cases`.

    Raises:
        WrongResultError: The kernel disagrees with the reference.
    """
    on_cuda = device.type == "cuda"
    shapes = shapes or (QUICK_SHAPES if quick else MODEL_SHAPES if on_cuda else CPU_SHAPES)
    dtypes = (torch.bfloat16,) if on_cuda else (torch.float32,) if quick else (torch.float32, torch.bfloat16)
    densities = densities or (QUICK_DENSITIES if quick else DENSITIES)
    cases: list[dict[str, Any]] = []
    total = len(shapes) * len(dtypes) * len(densities) * 2
    for shape in shapes:
        for dtype in dtypes:
            for density in densities:
                for uneven in (False, True):
                    if progress is not None:
                        progress(len(cases), total, shape.name)
                    size = (1, shape.num_heads, shape.length, shape.head_dim)
                    case = bench_case(size, dtype, density, uneven, tile, repeats, implementation, device)
                    cases.append({"model": shape.name, **case})
    if progress is not None:
        progress(total, total, "done")
    return {"environment": describe_machine(device), "repeats": repeats, "cases": cases}


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m fastdit_kernels.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = run_bench(device=torch.device(options.device), quick=options.quick, repeats=options.repeats)
    print(json.dumps(report, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
