"""Exact softmax mass of every tile pair, from the log-sum-exp of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import pad_to_tiles, pool_pyramid, wide_dtype
from fastdit_kernels.workspace import workspace_bytes

# Bytes of scores worked on at once by the eager code on a CPU. In the cache: with 32 MiB it took a fifth longer.
CPU_WORKSPACE_BYTES = 2 << 20
MAX_TRITON_TILE = 128


def block_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    lse: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    scale: float | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: str = "auto",
) -> torch.Tensor:
    """`mass[b, h, i, j]`: over query rows `q` of tile `i`, the mean (or sum) of `sum_j n e^(scale q . k - lse)`.

    The inner sum runs over the keys `k` of tile `j`. With pooling levels in `kv_layout` there is a column for each
    tile of each level, `k` is the mean key of a run and `n` its number of tokens; on level 0 `n` is 1 and, with the
    LSE of dense attention, the masses of a row sum to one. Scores are made tile by tile: no `S x S` memory.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order, not pooled.
        lse: Natural-log LSE of the query rows `[B, H, Sq]`; a row with -inf has no mass anywhere.
        q_layout: Query tiles.
        kv_layout: Key tiles, all levels that are wanted.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        reduction: `"mean"` divides by the query rows of the tile, padding left out.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        `[B, H, NQ, T]` over the tiles of all levels, fp32, or fp64 for fp64 input.

    Raises:
        InvalidInputError: Shapes or dtypes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if query.shape[2] != q_layout.length or key.shape[2] != kv_layout.length or lse.shape != query.shape[:3]:
        raise InvalidInputError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, lse {tuple(lse.shape)}: accepted are "
            f"[B, H, {q_layout.length}, D], [B, H, {kv_layout.length}, D] and [B, H, {q_layout.length}]"
        )
    if query.dtype != key.dtype or reduction not in ("mean", "sum"):
        raise InvalidInputError(
            f"query is {query.dtype}, key {key.dtype}, reduction {reduction!r}: "
            "accepted are equal dtypes and 'mean' or 'sum'"
        )
    wide = wide_dtype(query.dtype)
    # An LSE of +inf gives a row no mass at all: padding, and rows that saw no key.
    settled = torch.where(lse == -math.inf, math.inf, lse.to(wide)).unsqueeze(-1)
    buffered = pad_to_tiles(settled, q_layout).squeeze(-1)
    real = q_layout.row_members(query.device) > 0
    total: torch.Tensor = sum_mass(
        pad_to_tiles(query, q_layout),
        pool_pyramid(key, kv_layout),
        kv_layout.row_members(key.device).to(wide).log(),
        torch.where(real, buffered, math.inf),
        q_layout.tile,
        kv_layout.tile,
        1 / math.sqrt(query.shape[-1]) if scale is None else scale,
        implementation,
    )
    return total if reduction == "sum" else total / q_layout.tile_rows(query.device).unsqueeze(-1)


@torch.library.custom_op("fastdit::block_mass", mutates_args=())
def sum_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    key_bias: torch.Tensor,
    lse: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
    implementation: str,
) -> torch.Tensor:
    """Sums over tile buffers: `key_bias` (ln of members, -inf on padding) is added to the scores of each key row."""
    limit = None
    if max(q_tile, kv_tile) > MAX_TRITON_TILE:
        limit = f"tiles of {q_tile} x {kv_tile} rows are given, it takes at most {MAX_TRITON_TILE}"
    if runs_triton(implementation, query, limit):
        from fastdit_kernels import triton_mass

        return triton_mass.sum_mass(query, key, key_bias, lse, q_tile, kv_tile, scale)
    total = lse.new_empty((*query.shape[:2], query.shape[2] // q_tile, key.shape[2] // kv_tile))
    flat, levels = total.flatten(0, 1), lse.flatten(0, 1).unflatten(1, (-1, q_tile))
    for place, scores in score_chunks(query, key, key_bias, q_tile, scale):
        mass = scores.sub_(levels[place].unsqueeze(-1)).exp_()
        flat[place] = mass.unflatten(3, (-1, kv_tile)).sum((2, 4))
    return total


@sum_mass.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    key_bias: torch.Tensor,
    lse: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
    implementation: str,
) -> torch.Tensor:
    return lse.new_empty((*query.shape[:2], query.shape[2] // q_tile, key.shape[2] // kv_tile))


def score_chunks(
    query: torch.Tensor, key: torch.Tensor, key_bias: torch.Tensor, q_tile: int, scale: float
) -> Iterator[tuple[tuple[slice, slice], torch.Tensor]]:
    """Scores of some query tiles of some heads at a time, against all keys, in the dtype of `key_bias`.

    Args:
        query: `[B, H, NQ * q_tile, D]`.
        key: `[B, H, N, D]`.
        key_bias: Added to the scores of each key, `[N]`.
        q_tile: Query rows of a tile.
        scale: Factor on the products.

    Yields:
        Slices of the flattened `B * H` and of the query tiles, and their scores `[heads, tiles, q_tile, N]`.
    """
    wide = key_bias.dtype
    rows, keys = query.flatten(0, 1), key.flatten(0, 1)
    tiles = rows.shape[1] // q_tile
    room = max(1, workspace_bytes(query.device, CPU_WORKSPACE_BYTES) // max(1, q_tile * keys.shape[1] * wide.itemsize))
    tile_step, head_step = min(room, tiles), max(1, room // tiles)
    for first_head in range(0, len(rows), head_step):
        heads = slice(first_head, first_head + head_step)
        columns = keys[heads].to(wide).mT
        for first in range(0, tiles, tile_step):
            chunk = rows[heads, first * q_tile : (first + tile_step) * q_tile].to(wide)
            scores = (chunk @ columns).mul_(scale).add_(key_bias)
            yield (heads, slice(first, first + tile_step)), scores.unflatten(1, (-1, q_tile))
