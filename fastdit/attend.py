"""The one function between a processor and a kernel: order, select, attend, put back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite, ReusedMasks
from fastdit.orders import token_order
from fastdit.statistics import ReuseRecord
from fastdit_kernels import BlockMask, block_sparse_attention, gather_tokens, invert_order


@dataclass(frozen=True, eq=False)
class StepResult:
    """Sparse attention of one layer, and what it was made from.

    Args:
        out: `[B, S, H, D]` in the model's token order.
        mask: The mask that was used.
        query: `[B, H, S, D]` in tile order.
        key: `[B, H, S, D]` in tile order.
        reuse: What the cached method did.
    """

    out: torch.Tensor
    mask: BlockMask
    query: torch.Tensor
    key: torch.Tensor
    reuse: ReuseRecord | None = None


def sparse_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    kept: tuple[ReusedMasks, CallSite] | None = None,
) -> StepResult:
    """Sparse attention of one layer.

    Args:
        query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
        key: `[B, S, H, D]`.
        value: `[B, S, H, D]`.
        grid: Geometry, `S = grid.length`.
        config: Method and settings.
        cache: Holds the token orders, and masks that depend on the geometry alone.
        kept: Masks of earlier steps for the cached method, and which call this is; without it a mask is built.

    Returns:
        The output in the model's order, the mask that was used, and what it was chosen from.
    """
    order, inverse = _orders(grid, config.order, query.device, cache)
    # The gather also turns [B, S, H, D] into contiguous [B, H, S, D].
    q, k, v = (gather_tokens(x.transpose(1, 2), order) for x in (query, key, value))
    reuse = None
    if isinstance(config, CachedConfig) and kept is not None:
        masks, call = kept
        mask, reuse = masks.choose(config, q, k, v, grid, call)
    elif config.needs_tensors:
        mask = config.select(q, k, v, grid)
    else:
        mask = cache.get(("mask", grid, config, q.device), lambda: config.select(q, k, v, grid))
    out = block_sparse_attention(q, k, v, mask, implementation=config.implementation)
    return StepResult(out.transpose(1, 2).index_select(1, inverse), mask, q, k, reuse)


def _orders(grid: VideoGrid, name: str, device: torch.device, cache: MaskCache) -> tuple[torch.Tensor, torch.Tensor]:
    order = cache.get(("order", grid, name, device), lambda: token_order(grid, name).to(device))
    inverse = cache.get(("inverse", grid, name, device), lambda: invert_order(order))
    return order, inverse
