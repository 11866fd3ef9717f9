"""Every kernel against its fp64 twin on one device: `python -m fastdit_kernels.kernel_checks`.

What tests do in the interpreter, in minutes, for a machine that has the accelerator: ragged and exact lengths, two
segments, pooled levels, all head_dims, dtypes and tiles that the Triton kernels take. Fresh memory is poisoned.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fastdit_kernels.attention import block_sparse_attention
from fastdit_kernels.bench_check import TOLERANCE, random_inputs, random_mask, random_pooled_mask
from fastdit_kernels.bench_machine import describe_machine
from fastdit_kernels.block_mask import BlockMask
from fastdit_kernels.errors import FastDitError
from fastdit_kernels.mass import block_mass
from fastdit_kernels.merge import merge_attention
from fastdit_kernels.node_errors import pyramid_errors
from fastdit_kernels.pooling import pool_key_value
from fastdit_kernels.scores import tile_means, tile_scores
from fastdit_kernels.selection import select_tiles
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.token_moves import gather_to_tiles, scatter_from_tiles

HEAD_DIMS, TILES = (32, 64, 96, 128), ((128, 64), (64, 64), (128, 128), (64, 128))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = (1, 512, 1000)
SEGMENTS = ((1000,), (512, 33), (1,))


def run_checks(
    device: torch.device, implementation: str = "triton", head_dims: tuple[int, ...] = HEAD_DIMS
) -> dict[str, Any]:
    """Check all kernels.

    Args:
        device: Where to run.
        implementation: What to check: `"triton"`, or `"torch"` for the eager twins in low precision.
        head_dims: Widths of heads for attention, whose kernel is compiled anew for each.

    Returns:
        Plain data: `environment`, `cases` with error, tolerance and verdict, and `num_failed`. A kernel that raises has
        failed, too.
    """
    cases: list[dict[str, Any]] = []
    with poisoned(device):
        for dtype in DTYPES:
            for name, check in _checks(device, dtype, implementation, head_dims):
                case: dict[str, Any] = {"kernel": name[0], "case": name[1], "dtype": str(dtype)[6:], "error": None}
                tolerance = 0.0 if name[0] in ("select_tiles", "gather_to_tiles") else TOLERANCE[dtype]
                if name[0] == "pyramid_errors":
                    tolerance = ESTIMATE_TOLERANCE[dtype]
                try:
                    error = check()
                    case["error"] = error if math.isfinite(error) else str(error)
                    fault = None if error <= tolerance else f"error {error:.1e} is above {tolerance:.0e}"
                except (FastDitError, RuntimeError) as raised:
                    fault = f"{type(raised).__name__}: {str(raised)[:200]}"
                cases.append({**case, "tolerance": tolerance, "fault": fault})
    failed = [case for case in cases if case["fault"] is not None]
    return {"environment": describe_machine(device), "cases": cases, "num_failed": len(failed)}


@contextmanager
def poisoned(device: torch.device) -> Iterator[None]:
    """Fresh memory holds NaN, so that an element nobody writes cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        # Sums that are not deterministic on a GPU stay as they are; memory is filled all the same.
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _checks(
    device: torch.device, dtype: torch.dtype, implementation: str, head_dims: tuple[int, ...]
) -> Iterator[tuple[tuple[str, str], Callable[[], float]]]:
    for head_dim, (q_tile, kv_tile), length in product(head_dims, TILES, LENGTHS):
        place = f"{length} tokens, head_dim {head_dim}, tiles {q_tile} x {kv_tile}"
        shape = (1, 2, length, head_dim)
        exact = partial(random_mask, shape, q_tile, 0.4, uneven=True, kv_tile=kv_tile)
        yield ("attention", place), partial(_attention, shape, exact, dtype, device, implementation)
        if q_tile == kv_tile:
            pooled = partial(random_pooled_mask, shape, q_tile)
            yield ("attention", f"{place}, pooled"), partial(_attention, shape, pooled, dtype, device, implementation)
    for head_dim, segments in product((64, 128), SEGMENTS):
        place = f"segments {segments}, head_dim {head_dim}"
        for name, check in OPERATORS.items():
            yield (name, place), partial(check, segments, head_dim, dtype, device, implementation)


def _attention(
    shape: tuple[int, int, int, int],
    make_mask: Callable[[], Any],
    dtype: torch.dtype,
    device: torch.device,
    implementation: str,
) -> float:
    mask = make_mask().to(device)
    q, k, v = random_inputs(shape, dtype, device)
    got = block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)
    q, k, v = (x.double() for x in (q, k, v))
    expected = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="reference")
    empty = expected[1].isinf()
    if not torch.equal(got[1].isinf(), empty):
        return math.inf
    return max(_error(got[0], expected[0]), _error(got[1].masked_fill(empty, 0), expected[1].masked_fill(empty, 0)))


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value; NaN stays NaN."""
    return ((got.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1e-6)).item()


def _pool(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    layout = TileLayout(segments, 64, 3)
    _, key, value = random_inputs((1, 2, layout.length, dim), dtype, device)
    got = pool_key_value(key, value, layout, implementation=name)
    expected = pool_key_value(key.double(), value.double(), layout, implementation="torch")
    return max(_error(a, b) for a, b in zip(got, expected, strict=True))


def _means(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    layout = TileLayout(segments, 64)
    x = random_inputs((1, 2, layout.length, dim), dtype, device)[0]
    return _error(tile_means(x, layout, implementation=name), tile_means(x.double(), layout, implementation="torch"))


def _scores(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    q_layout, kv_layout = TileLayout(segments, 128), TileLayout(segments, 64)
    query, key, _ = random_inputs((1, 2, q_layout.length, dim), dtype, device)
    errors = []
    for settings in ({"estimator": "mean"}, {"estimator": "sampled", "q_samples": 4, "kv_samples": 4}):
        got = tile_scores(query, key, q_layout, kv_layout, implementation=name, **settings)
        wide = (query.double(), key.double(), q_layout, kv_layout)
        errors.append(_error(got, tile_scores(*wide, implementation="torch", **settings)))
    return max(errors)


def _mass(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    q_layout, kv_layout = TileLayout(segments, 128), TileLayout(segments, 64)
    query, key, _ = random_inputs((1, 2, q_layout.length, dim), dtype, device)
    lse = (query.double() @ key.double().mT / math.sqrt(dim)).logsumexp(-1)
    got = block_mass(query, key, lse.float(), q_layout, kv_layout, implementation=name)
    expected = block_mass(query.double(), key.double(), lse, q_layout, kv_layout, implementation="torch")
    return _error(got, expected)


def _first_order(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    """The video at level 2, on top of a kernel that `attention` has checked."""
    layout = TileLayout(segments, 64, 4)
    query, key, value = random_inputs((1, 2, layout.length, dim), dtype, device)
    value = value + key
    keep = torch.zeros(layout.total_tiles, dtype=torch.bool, device=device)
    keep[layout.segment_tiles(0)[0] : layout.num_tiles] = True
    keep[layout.level_offset(2) : layout.level_offset(2) + layout.segment_tiles(2)[0]] = True
    table = keep.expand(1, 1, TileLayout(segments, 128).num_tiles, -1)
    mask = BlockMask.from_dense(table, q_len=segments, kv_len=segments, kv_tile=64, num_levels=4)
    got = block_sparse_attention(query, key, value, mask, first_order_rows=1, implementation=name)
    wide = (query.double(), key.double(), value.double(), mask)
    return _error(got, block_sparse_attention(*wide, first_order_rows=1, implementation="reference"))


def _merge(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    first, second, _ = random_inputs((1, 2, sum(segments), dim), dtype, device)
    lses = [x.float().sum(-1) for x in (first, second)]
    lses[0][:, 0] = -math.inf
    got = merge_attention(first, lses[0], second, lses[1], implementation=name)
    wide = (first.double(), lses[0].double(), second.double(), lses[1].double())
    expected = merge_attention(*wide, implementation="torch")
    return max(_error(a, b) for a, b in zip(got, expected, strict=True))


def _moves(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    layout = TileLayout(segments, 128)
    x = random_inputs((1, 2, layout.length, dim), dtype, device)[0]
    orders = torch.stack([torch.randperm(layout.length, device=device) for _ in range(2)])
    buffer = gather_to_tiles(x, orders, layout, implementation=name)
    expected = gather_to_tiles(x, orders, layout, implementation="torch")
    return max(_error(buffer, expected), _error(scatter_from_tiles(buffer, orders, layout, implementation=name), x))


def _select(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    """0 if the same tiles are kept, else 1. Masses are multiples of 1/64: sums without rounding, and many ties."""
    q_layout, kv_layout = TileLayout(segments, 128), TileLayout(segments, 64)
    generator = torch.Generator().manual_seed(dim)
    parts = torch.randint(0, kv_layout.num_tiles, (1, 2, q_layout.num_tiles, 64), generator=generator)
    scores = (torch.nn.functional.one_hot(parts, kv_layout.num_tiles).sum(3).float() / 64).to(device)
    wrong = 0.0
    for top_p in (None, 0.7):
        settings = {"max_tiles": max(1, kv_layout.num_tiles // 2), "top_p": top_p}
        one, other = (
            select_tiles(scores, q_layout, kv_layout, implementation=which, **settings)  # type: ignore[arg-type]  # mixed values
            for which in (name, "torch")
        )
        same = torch.equal(one.counts, other.counts) and torch.equal(one.to_dense(), other.to_dense())
        wrong = max(wrong, float(not same))
    return wrong


def _nodes(segments: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, name: str) -> float:
    layout = TileLayout(segments, 64, 6)
    rows, key, value = (x.flatten(0, 1) for x in random_inputs((1, 2, layout.length, dim), dtype, device))
    rows = rows[:, torch.arange(20, device=device) % layout.length].unflatten(1, (5, 4))
    got = pyramid_errors(rows, key, value, layout, implementation=name)
    expected = pyramid_errors(rows.double(), key.double(), value.double(), layout, implementation="torch")
    # One token has nothing to lose by being pooled.
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if b.any()]
    return max(_error(a, b) for a, b in pairs)


OPERATORS: dict[str, Callable[[tuple[int, ...], int, torch.dtype, torch.device, str], float]] = {
    "pool_key_value": _pool,
    "tile_means": _means,
    "tile_scores": _scores,
    "block_mass": _mass,
    "first_order": _first_order,
    "merge_attention": _merge,
    "gather_to_tiles": _moves,
    "select_tiles": _select,
    "pyramid_errors": _nodes,
}
# Estimates from weights in bf16, or in tf32 for fp32 input.
ESTIMATE_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.float32: 2e-3}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, 1 if a kernel failed."""
    parser = argparse.ArgumentParser(prog="python -m fastdit_kernels.kernel_checks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--implementation", default="triton")
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    report = run_checks(torch.device(options.device), options.implementation, tuple(options.head_dims))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    for case in report["cases"]:
        if case["fault"] is not None:
            print(f"{case['kernel']}, {case['dtype']}, {case['case']}: {case['fault']}")  # noqa: T201
    total = len(report["cases"])
    print(f"{total - report['num_failed']} of {total} cases agree with fp64 ({options.implementation})")  # noqa: T201
    return 1 if report["num_failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
