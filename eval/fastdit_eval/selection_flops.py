"""FLOPs of the matrix products of a selection, a figure that no busy machine disturbs.

Counted by PyTorch's `FlopCounterMode`, two for each multiply and add. It sees no product inside an operator, so these
have formulas here. Sorting, exponentials, sums and moving tokens are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def matmul_flops(run: Callable[[], object]) -> int:
    """FLOPs of all matrix products that a function does."""
    operators = torch.ops.fastdit
    formulas = {
        operators.representative_mass: _score_flops,
        operators.block_mass: _score_flops,
        operators.block_sparse_attention: _sparse_attention_flops,
        # PyTorch has no formula for its own dense attention on a CPU.
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _dense_attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return int(counter.get_total_flops())


def _score_flops(query: torch.Size, key: torch.Size, *rest: Any, out_shape: Any = None, **settings: Any) -> int:
    """Of `query key^T`, from shapes `[B, H, rows, D]`."""
    return 2 * query[0] * query[1] * query[2] * key[2] * query[3]


def _dense_attention_flops(query: torch.Size, key: torch.Size, *rest: Any, **settings: Any) -> int:
    """Of scores and weighted sum."""
    return 2 * _score_flops(query, key)


def _sparse_attention_flops(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    kv_segments: list[int],
    num_levels: int,
    q_tile: int,
    kv_tile: int,
    *rest: Any,
    **settings: Any,
) -> int:
    """Of the scores and the weighted sum of all listed tiles, whole."""
    tiles = int(counts.expand(*query.shape[:2], -1).sum())
    return 4 * tiles * q_tile * kv_tile * query.shape[3]


# Takes the tensors themselves: the lists say how many tiles there are.
_sparse_attention_flops._get_raw = True  # type: ignore[attr-defined]  # how FlopCounterMode asks for it
