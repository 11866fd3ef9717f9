"""The `torch.library` operator behind `block_sparse_attention`: one opaque node for `torch.compile`."""

from __future__ import annotations

import torch

from fastdit_kernels.block_mask import TILE_BITS
from fastdit_kernels.dispatch import IMPLEMENTATIONS, load
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import wide_dtype


@torch.library.custom_op("fastdit::block_sparse_attention", mutates_args=())
def attend_buffers(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    kv_segments: list[int],
    num_levels: int,
    q_tile: int,
    kv_tile: int,
    scale: float,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over tile buffers; see `implementations.reference.attend` for the definition.

    Args:
        query: `[B, H, NQ * q_tile, D]`, contiguous.
        key: `[B, H, T * kv_tile, D]`, all levels, contiguous.
        value: Like `key`.
        indices: Entries with level bits, int32 `[B or 1, H or 1, NQ, K]`.
        counts: int32 `[B or 1, H or 1, NQ]`.
        kv_segments: Token counts of the key segments.
        num_levels: Pooling levels of the key buffer.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        scale: Factor on the scores.
        implementation: A resolved name, never `"auto"`.

    Returns:
        Output in the dtype of `query` and LSE in fp32 (fp64 for fp64 input).
    """
    layout = TileLayout(tuple(kv_segments), kv_tile, num_levels)
    members = None if layout.is_exact and implementation != "reference" else layout.row_members(query.device)
    batch, heads = query.shape[:2]
    packed = num_levels == 1 or IMPLEMENTATIONS[implementation].packed_entries
    tiles = indices if packed else indices & TILE_BITS
    out, lse = load(implementation)(
        query,
        key,
        value,
        members,
        tiles.expand(batch, heads, -1, -1),
        counts.expand(batch, heads, -1),
        q_tile,
        kv_tile,
        scale,
    )
    return out.to(query.dtype), lse


@attend_buffers.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    kv_segments: list[int],
    num_levels: int,
    q_tile: int,
    kv_tile: int,
    scale: float,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = wide_dtype(query.dtype)
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=wide)
