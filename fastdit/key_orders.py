"""An order of keys and values for each head: tries the candidates of a config once, remembers the best."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.mask_cache import MaskCache
from fastdit_kernels import BlockMask, gather_tokens


@dataclass(frozen=True, eq=False)
class Selection:
    """A mask with the keys and values that it speaks of.

    Args:
        key: `[B, H, S, D]` in tile order.
        value: `[B, H, S, D]` in tile order.
        mask: The mask.
        order: Their order, as a permutation of the model's sequence: `[S]`, or `[H, S]` for one per head.
        shares_order: bool `[H]`: heads whose keys are in the order of the queries; `None` if all are.
        dense_out: Output of dense attention in tile order, where the selection had to compute it.
    """

    key: torch.Tensor
    value: torch.Tensor
    mask: BlockMask
    order: torch.Tensor
    shares_order: torch.Tensor | None = None
    dense_out: torch.Tensor | None = None


def select_per_head(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    orders: Sequence[torch.Tensor],
    memory: MaskCache,
    site: Hashable,
) -> Selection:
    """Put keys and values of each head in its best order and select.

    Args:
        query: `[B, H, S, D]` in the order of the queries.
        key: `[B, H, S, D]` in the model's token order.
        value: Likewise.
        grid: Geometry.
        config: Method with `key_orders`.
        orders: A permutation of the model's sequence for each of them, `[S]`, or `[H, S]` for one per head.
        memory: Holds the choice of each site.
        site: Names the layer.

    Returns:
        The mask, with keys and values in tile order by one gather each.
    """
    heads = query.shape[1]
    shares = torch.tensor([name == config.query_order for name in config.key_orders], device=query.device)
    tried: list[BlockMask] = []

    def choose() -> torch.Tensor:
        if len(orders) == 1:
            return torch.zeros(heads, dtype=torch.int64, device=query.device)
        errors = []
        for number, order in enumerate(orders):
            k, v = gather_tokens(key, order), gather_tokens(value, order)
            mask, error = config.select_reordered(query, k, v, grid, shares[number].expand(heads), measure=True)
            assert error is not None, "measured on request"
            tried.append(mask)
            errors.append(error.square().mean(0))
        return torch.stack(errors).argmin(0)

    choice = memory.get(("key_order", site, grid, heads), choose)
    order = _order_of_heads(orders, choice)
    key, value = gather_tokens(key, order), gather_tokens(value, order)
    mask = _mask_of_heads(tried, choice) if tried else None
    if mask is None:
        mask = config.select_reordered(query, key, value, grid, shares[choice], measure=False)[0]
    return Selection(key, value, mask, order, shares[choice])


def _order_of_heads(orders: Sequence[torch.Tensor], choice: torch.Tensor) -> torch.Tensor:
    """The chosen order of each head, `[H, S]`."""
    chosen = orders[0].expand(len(choice), -1)
    for number, order in enumerate(orders[1:], 1):
        chosen = torch.where((choice == number).unsqueeze(1), order, chosen)
    return chosen


def _mask_of_heads(masks: Sequence[BlockMask], choice: torch.Tensor) -> BlockMask:
    """A mask that takes each head from the mask of its choice."""
    heads = torch.arange(len(choice), device=choice.device)
    indices, counts = (
        torch.stack(parts)[choice, :, heads].transpose(0, 1).contiguous()
        for parts in ([mask.indices for mask in masks], [mask.counts for mask in masks])
    )
    return BlockMask(indices, counts, masks[0].q_layout, masks[0].kv_layout)
