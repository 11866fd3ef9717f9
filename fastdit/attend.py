"""The one function between a processor and a kernel: order, select, attend, put back."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.key_orders import select_per_head
from fastdit.mask_cache import MaskCache
from fastdit.orders import token_order
from fastdit.selectors.score_order import score_order
from fastdit_kernels import BlockMask, block_sparse_attention, gather_tokens, invert_order


def sparse_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    *,
    memory: MaskCache | None = None,
    site: Hashable = None,
) -> tuple[torch.Tensor, BlockMask]:
    """Sparse attention of one layer.

    Args:
        query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
        key: `[B, S, H, D]`.
        value: `[B, S, H, D]`.
        grid: Geometry, `S = grid.length`.
        config: Method and settings.
        cache: Holds the token orders.
        memory: Holds what is settled once per run and layer, such as the key order of each head; `None` settles anew.
        site: Names the layer in `memory`.

    Returns:
        Output `[B, S, H, D]` in the model's order, and the mask that was used.
    """
    order, inverse = _orders(grid, config.query_order, query.device, cache)
    # The gather also turns [B, S, H, D] into contiguous [B, H, S, D].
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    q = gather_tokens(query, order)
    if config.key_orders:
        orders = [_key_order(name, query, key, grid, cache) for name in config.key_orders]
        memory = MaskCache() if memory is None else memory
        k, v, mask = select_per_head(q, key, value, grid, config, orders, memory, site)
    else:
        k, v = gather_tokens(key, order), gather_tokens(value, order)
        mask = config.select(q, k, v, grid)
    out = block_sparse_attention(q, k, v, mask, implementation=config.implementation)
    return out.transpose(1, 2).index_select(1, inverse), mask


def _key_order(name: str, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, cache: MaskCache) -> torch.Tensor:
    """A permutation of the model's sequence: `[S]` from geometry, or `[H, S]` from the tensors of this call."""
    if name == "score":
        return score_order(query, key, grid)
    return _orders(grid, name, query.device, cache)[0]


def _orders(grid: VideoGrid, name: str, device: torch.device, cache: MaskCache) -> tuple[torch.Tensor, torch.Tensor]:
    order = cache.get(("order", grid, name, device), lambda: token_order(grid, name).to(device))
    inverse = cache.get(("inverse", grid, name, device), lambda: invert_order(order))
    return order, inverse
