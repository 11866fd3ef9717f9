"""Times block-sparse against dense attention on this machine: `python -m fastdit_kernels.bench [--threads N]`.

Correctness first, then time: every case is checked against the reference before it is timed. Dense and sparse runs
alternate in one process; the figure is the ratio of medians, in process CPU time for one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fastdit_kernels.attention import block_sparse_attention
from fastdit_kernels.block_mask import BlockMask

DENSITIES = (0.05, 0.1, 0.2, 0.4)
SPREAD = 8.0


def random_mask(shape: tuple[int, int, int, int], tile: int, density: float, uneven: bool, seed: int = 0) -> BlockMask:
    """Random tiles at a density.

    Args:
        shape: `[B, H, S, D]` of the attention.
        tile: Rows of query and key tiles.
        density: Mean share of key tiles per row.
        uneven: Rows differ by up to a factor of 8 instead of being equally long.
        seed: Seed of the choice.
    """
    batch, heads, length, _ = shape
    tiles = -(-length // tile)
    generator = torch.Generator().manual_seed(seed)
    share = torch.full((batch, heads, tiles), density)
    if uneven:
        share = SPREAD ** torch.rand(share.shape, generator=generator)
        share *= density / share.mean()
    counts = (share * tiles).round().clamp(1, tiles).long()
    rank = torch.rand((batch, heads, tiles, tiles), generator=generator).argsort(-1).argsort(-1)
    return BlockMask.from_dense(rank < counts.unsqueeze(-1), q_len=length, kv_len=length, q_tile=tile, kv_tile=tile)


def time_pair(
    dense: Callable[[], object], sparse: Callable[[], object], repeats: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median seconds of both, run in turn after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for run, kept in zip((dense, sparse), times, strict=True):
            start = clock()
            run()
            if repeat:
                kept.append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def bench_case(
    shape: tuple[int, int, int, int], dtype: torch.dtype, density: float, uneven: bool, tile: int, repeats: int
) -> dict[str, Any]:
    """One line of the result: the case, its error, both times and the speed-up."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    mask = random_mask(shape, tile, density, uneven)
    out = block_sparse_attention(query, key, value, mask)
    exact = block_sparse_attention(query, key, value, mask, implementation="reference")
    error = ((out - exact).abs().max() / exact.abs().max()).item()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2), f"wrong result: relative error {error:.1e}"
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    dense_seconds, sparse_seconds = time_pair(
        lambda: F.scaled_dot_product_attention(query, key, value),
        lambda: block_sparse_attention(query, key, value, mask),
        repeats,
        clock,
    )
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "tile": tile,
        "uneven_rows": uneven,
        "density": mask.density(),
        "relative_error": error,
        "dense_seconds": dense_seconds,
        "sparse_seconds": sparse_seconds,
        "speedup": dense_seconds / sparse_seconds,
    }


def main() -> None:
    """Run all cases and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (1, 4, options.tokens, options.head_dim)
    cases = [
        bench_case(shape, dtype, density, uneven, options.tile, options.repeats)
        for dtype in (torch.float32, torch.bfloat16)
        for density in DENSITIES
        for uneven in (False, True)
    ]
    environment = {"torch": torch.__version__, "threads": options.threads, "platform": platform.platform()}
    # Programs print; this is one.
    print(json.dumps({"dense": "F.scaled_dot_product_attention", **environment, "cases": cases}, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
