"""Block-sparse attention on GPUs: prepares the lists, chooses a configuration, launches the Triton kernel.

fp32 inputs use three TF32 products per dot (`tf32x3`), on AMD plain fp32 ones; both keep fp32 accuracy.
"""

from __future__ import annotations

import contextlib
import contextvars
import math

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from fastdit_kernels.implementations.triton_configurations import (
    TritonConfiguration,
    architecture_of,
    select_configuration,
)
from fastdit_kernels.implementations.triton_kernels import TAIL_SHIFT, block_sparse_forward, partition_entries
from fastdit_kernels.triton_target import product_precision

# Past this many query tiles the natural order balances the processors well enough, and keeps neighbours on the same
# head, whose keys are then in the cache.
MAX_SORTED_TILES = 16384
PARTITION_BLOCK = 256


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_members: torch.Tensor | None,
    indices: torch.Tensor,
    counts: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same contract as the reference, except that `indices` keep their level bits and the output has `query`'s dtype.

    `row_members=None` says that every row is one real token.
    """
    architecture = architecture_of(query.device)
    assert architecture is not None, "dispatch admits known devices only"
    configuration = select_configuration(architecture, query.shape[-1], query.dtype, q_tile, kv_tile)
    with torch.cuda.device(query.device) if query.is_cuda else contextlib.nullcontext():
        return launch(
            configuration, architecture, query, key, value, row_members, indices, counts, q_tile, kv_tile, scale
        )


def launch(
    configuration: TritonConfiguration,
    architecture: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_members: torch.Tensor | None,
    indices: torch.Tensor,
    counts: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend` with a given configuration, on the current device."""
    batch, heads, q_rows, head_dim = query.shape
    if scale < 0:
        query, scale = -query, -scale
    tails = None if row_members is None else tile_tails(row_members, kv_tile)
    order = launch_order(counts)
    lists, list_counts = _unexpanded(indices), _unexpanded(counts)
    exact_counts = list_counts
    if tails is not None and not configuration.warp_specialize:
        lists, exact_counts = partition(lists, list_counts, tails, kv_tile)
    out, lse = torch.empty_like(query), query.new_empty((batch, heads, q_rows), dtype=torch.float32)
    keys, values = key, value
    if configuration.descriptors:
        block = [configuration.block_n, triton.next_power_of_2(head_dim)]
        keys, values = (TensorDescriptor.from_tensor(x.view(-1, head_dim), block) for x in (key, value))
    grid = (order.numel() * (q_tile // configuration.block_m),)
    arguments: list[object] = [query, keys, values, out, lse, lists, list_counts, exact_counts, order]
    arguments += [tails if tails is not None else list_counts, scale * math.log2(math.e), heads, counts.shape[2]]
    arguments += [key.shape[2], lists.shape[3], lists.shape[1] * lists.shape[2] if lists.shape[0] > 1 else 0]
    arguments += [lists.shape[2] if lists.shape[1] > 1 else 0, batch * heads * q_rows]
    options = _options(configuration, architecture, head_dim, q_tile, kv_tile) | {"HAS_RAGGED": tails is not None}

    def run() -> None:
        # The descriptor of the queries is made on the GPU, in memory that the launcher asks for.
        triton.set_allocator(lambda size, _alignment, _stream: query.new_empty(size, dtype=torch.int8))
        block_sparse_forward[grid](*arguments, **options)

    # In a context of its own, so that an allocator that somebody else set stays as it was.
    contextvars.copy_context().run(run)
    return out, lse


def _options(
    configuration: TritonConfiguration, architecture: str, head_dim: int, q_tile: int, kv_tile: int
) -> dict[str, int | bool | str]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "Q_TILE": q_tile,
        "KV_TILE": kv_tile,
        "BLOCK_M": configuration.block_m,
        "BLOCK_N": configuration.block_n,
        "STAGES": configuration.num_stages,
        "DESCRIPTORS": configuration.descriptors,
        "WARP_SPECIALIZE": configuration.warp_specialize,
        "PRECISION": product_precision(architecture),
        "num_warps": configuration.num_warps,
        "num_stages": configuration.num_stages,
        "enable_fp_fusion": True,
    }


def tile_tails(row_members: torch.Tensor, kv_tile: int) -> torch.Tensor:
    """What is ragged about each tile: `full rows << 8 | tokens behind the row after them`.

    Args:
        row_members: Tokens behind each key row, `[T * kv_tile]`, 0 for padding.
        kv_tile: Key rows of a tile.

    Returns:
        int32 `[T]`. All rows of an exact tile are full; in others the last row that is not padding counts as ragged.
    """
    members = row_members.view(-1, kv_tile)
    last_row = (members > 0).sum(1) - 1
    last = members.gather(1, last_row.unsqueeze(1)).squeeze(1)
    exact = (members == members[:, :1]).all(1)
    return ((torch.where(exact, kv_tile, last_row) << TAIL_SHIFT) | last).to(torch.int32)


def launch_order(counts: torch.Tensor) -> torch.Tensor:
    """Which query tile each program takes, int32 `[B * H * NQ]`: longest rows first, so that none is left for the end.

    Args:
        counts: int32 `[B, H, NQ]`.
    """
    if counts.numel() > MAX_SORTED_TILES:
        return torch.arange(counts.numel(), dtype=torch.int32, device=counts.device)
    return counts.reshape(-1).sort(descending=True, stable=True).indices.to(torch.int32)


def partition(
    lists: torch.Tensor, counts: torch.Tensor, tails: torch.Tensor, kv_tile: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists with entries of exact tiles first, and how many those are.

    Args:
        lists: int32 `[B, H, NQ, K]`, contiguous.
        counts: int32 `[B, H, NQ]`, contiguous.
        tails: See `tile_tails`.
        kv_tile: Key rows of a tile.
    """
    ordered, exact_counts = torch.empty_like(lists), torch.empty_like(counts)
    partition_entries[(counts.numel(),)](
        lists,
        counts,
        tails,
        ordered,
        exact_counts,
        lists.shape[-1],
        KV_TILE=kv_tile,
        BLOCK=PARTITION_BLOCK,
        enable_fp_fusion=True,
    )
    return ordered, exact_counts


def _unexpanded(x: torch.Tensor) -> torch.Tensor:
    """Undo `expand` over batches and heads: one list where all share it."""
    for dim in (0, 1):
        if x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    return x.contiguous()
