"""The one function between a processor and a kernel: order, select, attend, put back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.key_orders import Selection, select_per_head
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.orders import token_order
from fastdit.run_memory import RunMemory
from fastdit.selectors.score_order import score_order
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
    memory: RunMemory | None = None,
    site: CallSite | None = None,
) -> StepResult:
    """Sparse attention of one layer.

    Args:
        query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
        key: `[B, S, H, D]`.
        value: `[B, S, H, D]`.
        grid: Geometry, `S = grid.length`.
        config: Method and settings.
        cache: Holds the token orders, and masks that depend on the geometry alone.
        memory: Holds what the run has settled: key orders, and masks of the cached method; `None` settles all anew.
        site: Which call of the run it is.

    Returns:
        The output in the model's order, the mask that was used, and what it was chosen from.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    q, chosen, reuse = choose_tiles(query, key, value, grid, config, cache, memory, site)
    out = block_sparse_attention(q, chosen.key, chosen.value, chosen.mask, implementation=config.implementation)
    inverse = _orders(grid, config.query_order, query.device, cache)[1]
    return StepResult(out.transpose(1, 2).index_select(1, inverse), chosen.mask, q, chosen.key, reuse)


def choose_tiles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    memory: RunMemory | None = None,
    site: CallSite | None = None,
) -> tuple[torch.Tensor, Selection, ReuseRecord | None]:
    """Everything of `sparse_step` that comes before the kernel.

    Args:
        query: `[B, H, S, D]` in the model's token order.
        key: Likewise.
        value: Likewise.
        grid: Geometry.
        config: Method and settings.
        cache: As in `sparse_step`.
        memory: As in `sparse_step`.
        site: As in `sparse_step`.

    Returns:
        Queries in `config.query_order`; the mask with its keys and values; what the cached method did.
    """
    order = _orders(grid, config.query_order, query.device, cache)[0]
    # The gather also makes [B, H, S, D] contiguous.
    q = gather_tokens(query, order)
    place = None if site is None else (site.transformer, site.layer)
    method = config.source if isinstance(config, CachedConfig) else config

    def build() -> Selection:
        if method.key_orders:
            orders = [partial(_key_order, name, query, key, grid, cache) for name in method.key_orders]
            settled = MaskCache() if memory is None else memory.key_orders
            return select_per_head(q, key, value, grid, method, orders, settled, place)
        k, v = gather_tokens(key, order), gather_tokens(value, order)
        if method.needs_tensors:
            return Selection(k, v, method.select(q, k, v, grid), order)
        return Selection(k, v, cache.get(("mask", grid, method, q.device), lambda: method.select(q, k, v, grid)), order)

    if isinstance(config, CachedConfig) and memory is not None and site is not None:
        chosen, reuse = memory.masks.choose(config, q, key, value, grid, site, build)
        return q, chosen, reuse
    return q, build(), None


def _key_order(
    name: str, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, cache: MaskCache, heads: list[int]
) -> torch.Tensor:
    """A permutation of the model's sequence: `[S]` from geometry, or from the tensors `[len(heads), S]`."""
    if name == "score":
        places = torch.tensor(heads, device=query.device)
        return score_order(query.index_select(1, places), key.index_select(1, places), grid)
    return _orders(grid, name, query.device, cache)[0]


def _orders(grid: VideoGrid, name: str, device: torch.device, cache: MaskCache) -> tuple[torch.Tensor, torch.Tensor]:
    order = cache.get(("order", grid, name, device), lambda: token_order(grid, name).to(device))
    inverse = cache.get(("inverse", grid, name, device), lambda: invert_order(order))
    return order, inverse
