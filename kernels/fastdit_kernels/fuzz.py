"""Random cases of block-sparse attention against the fp64 reference: `python -m fastdit_kernels.fuzz`.

Every case follows from its own seed, so that a failure is repeated by `--num-cases 1 --seed SEED`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from fastdit_kernels.attention import block_sparse_attention
from fastdit_kernels.block_mask import LEVEL_SHIFT, BlockMask
from fastdit_kernels.tile_layout import TileLayout

# Largest error for inputs of unit variance, relative to the largest expected value where that exceeds 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = tuple(TOLERANCE)
STRIDES = ("contiguous", "token_major", "padded_rows", "every_second_token")
KEEP = ("empty", "sparse", "half", "full", "uneven")
T = TypeVar("T")


@dataclass(frozen=True)
class FuzzCase:
    """One random case; everything random about it, the values included, comes from `seed`.

    Args:
        seed: Seed of the shapes, the mask and the values.
        batch: Batch size.
        heads: Heads.
        q_segments: Query tokens of each segment.
        kv_segments: Key tokens of each segment.
        head_dim: Channels of a head.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        num_levels: Pooling levels.
        keep: How many tiles the rows list.
        shared_batch: One list for all batches.
        shared_heads: One list for all heads.
        dtype: Of query, key and value.
        strides: Memory layout of query, key and value.
        amplitude: Standard deviation of query and key.
        scale: Factor on the scores; `None` for the default.
    """

    seed: int
    batch: int
    heads: int
    q_segments: tuple[int, ...]
    kv_segments: tuple[int, ...]
    head_dim: int
    q_tile: int
    kv_tile: int
    num_levels: int
    keep: str
    shared_batch: bool
    shared_heads: bool
    dtype: torch.dtype
    strides: str
    amplitude: float
    scale: float | None


def draw_case(seed: int) -> FuzzCase:
    """The case of a seed."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def choose(options: Sequence[T]) -> T:
        return options[between(0, len(options) - 1)]

    def segments(tile: int) -> tuple[int, ...]:
        # Exact multiples, one token and ragged ends each often enough.
        lengths = [choose((1, tile, tile * between(1, 4), between(1, 4 * tile))) for _ in range(between(1, 2))]
        return tuple(lengths)

    q_tile, kv_tile = choose((8, 16, 32)), choose((4, 8, 16, 32))
    return FuzzCase(
        seed=seed,
        batch=between(1, 2),
        heads=between(1, 2),
        q_segments=segments(q_tile),
        kv_segments=segments(kv_tile),
        head_dim=choose((8, 12, 32, 64)),
        q_tile=q_tile,
        kv_tile=kv_tile,
        num_levels=choose((1, 1, 2, 3, 5)),
        keep=choose(KEEP),
        shared_batch=between(0, 3) == 0,
        shared_heads=between(0, 3) == 0,
        dtype=choose(DTYPES),
        strides=choose(STRIDES),
        amplitude=choose((1.0, 1.0, 4.0)),
        scale=choose((None, 0.3)),
    )


def build_mask(case: FuzzCase) -> BlockMask:
    """Lists in random order, with nonsense in the slots that are not meant."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    q_layout = TileLayout(case.q_segments, case.q_tile)
    kv_layout = TileLayout(case.kv_segments, case.kv_tile, case.num_levels)
    tiles = kv_layout.total_tiles
    rows = (1 if case.shared_batch else case.batch, 1 if case.shared_heads else case.heads, q_layout.num_tiles)
    share = {"empty": 0.0, "sparse": 0.15, "half": 0.5, "full": 1.0, "uneven": 0.0}[case.keep]
    shares = torch.rand(rows, generator=generator) ** 2 if case.keep == "uneven" else torch.full(rows, share)
    counts = (shares * tiles).round().to(torch.int32)
    order = torch.rand((*rows, tiles), generator=generator).argsort(-1)
    indices = (order + (kv_layout.tile_levels() << LEVEL_SHIFT)[order]).to(torch.int32)
    unlisted = torch.arange(tiles) >= counts.unsqueeze(-1)
    return BlockMask(indices.masked_fill(unlisted, -(2**31) + 7), counts, q_layout, kv_layout)


def build_inputs(case: FuzzCase) -> list[torch.Tensor]:
    """Query, key and value with the strides of the case."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    tensors = []
    for length, amplitude in zip(
        (sum(case.q_segments), sum(case.kv_segments), sum(case.kv_segments)),
        (case.amplitude, case.amplitude, 1.0),
        strict=True,
    ):
        x = amplitude * torch.randn(case.batch, case.heads, length, case.head_dim, generator=generator)
        tensors.append(_with_strides(x.to(case.dtype), case.strides))
    return tensors


def _with_strides(x: torch.Tensor, strides: str) -> torch.Tensor:
    if strides == "token_major":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if strides == "padded_rows":
        return torch.nn.functional.pad(x, (3, 2), value=float("nan"))[..., 3:-2]
    if strides == "every_second_token":
        wide = torch.full((*x.shape[:2], 2 * x.shape[2], x.shape[3]), float("nan"), dtype=x.dtype)
        wide[:, :, ::2] = x
        return wide[:, :, ::2]
    return x


def check_case(case: FuzzCase, implementation: str = "torch") -> str | None:
    """Run a case.

    Returns:
        What is wrong with the result, `None` if it agrees with the fp64 reference.
    """
    query, key, value = build_inputs(case)
    mask = build_mask(case)
    out, lse = block_sparse_attention(
        query, key, value, mask, scale=case.scale, return_lse=True, implementation=implementation
    )
    expected, expected_lse = block_sparse_attention(
        query.double(),
        key.double(),
        value.double(),
        mask,
        scale=case.scale,
        return_lse=True,
        implementation="reference",
    )
    if out.shape != query.shape or out.dtype != query.dtype:
        return f"output is {out.dtype} {tuple(out.shape)}"
    empty = expected_lse.isinf()
    if not torch.equal(lse == -torch.inf, empty) or bool(out[empty].any()):
        return "rows without keys are not 0 and -inf, or other rows are"
    # Rounding of queries and keys moves a score in proportion to both amplitudes.
    tolerance = TOLERANCE[case.dtype] * case.amplitude**2
    error = _largest((out.double() - expected).abs()) / max(1.0, _largest(expected.abs()))
    lse_error = _largest((lse.double() - expected_lse)[~empty].abs()) / max(1.0, _largest(expected_lse[~empty].abs()))
    # Negated, so that NaN is wrong too.
    if not error <= tolerance:
        return f"output error {error:.2e} is above {tolerance:.0e}"
    if not lse_error <= tolerance:
        return f"LSE error {lse_error:.2e} is above {tolerance:.0e}"
    return None


def _largest(x: torch.Tensor) -> float:
    return x.max().item() if x.numel() else 0.0


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element nobody writes cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run_cases(
    num_cases: int, seed: int, implementation: str = "torch", progress: Callable[[int], None] | None = None
) -> tuple[FuzzCase, str] | None:
    """Check the cases `seed ... seed + num_cases - 1`.

    Args:
        num_cases: How many.
        seed: Seed of the first.
        implementation: What to check.
        progress: Called with the number of cases done.

    Returns:
        The first case that fails and what is wrong with it, `None` if all agree.
    """
    with poisoned_memory():
        for done in range(num_cases):
            case = draw_case(seed + done)
            fault = check_case(case, implementation)
            if fault is not None:
                return case, fault
            if progress is not None:
                progress(done + 1)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m fastdit_kernels.fuzz", description=__doc__)
    parser.add_argument("--num-cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    parser.add_argument("--implementation", default="torch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def show(done: int) -> None:
        if done % 200 == 0 or done == options.num_cases:
            print(f"\r{done}/{options.num_cases} cases", end="", file=sys.stderr, flush=True)  # noqa: T201

    failed = run_cases(options.num_cases, options.seed, options.implementation, show)
    print(file=sys.stderr)  # noqa: T201
    if failed is None:
        print(f"{options.num_cases} cases from seed {options.seed}: all agree with the fp64 reference")  # noqa: T201
        return 0
    case, fault = failed
    again = f"--num-cases 1 --seed {case.seed} --implementation {options.implementation}"
    print(f"{fault}\n{case}\nrepeat with: python -m fastdit_kernels.fuzz {again}")  # noqa: T201
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
