"""An order of keys and values for each head: tries the candidates of a config once, remembers the best."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

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


# Gives a permutation of the model's sequence for the named heads: `[S]` for all alike, or `[len(heads), S]`.
MakeOrder = Callable[[list[int]], torch.Tensor]


def select_per_head(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    orders: Sequence[MakeOrder],
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
        orders: How each of them is made. Once a site has settled, each is made for the heads that chose it.
        memory: Holds the choice of each site, on the host: settling waits for the device, later calls do not.
        site: Names the layer.

    Returns:
        The mask, with keys and values in tile order by one gather each.
    """
    heads = query.shape[1]
    shares = torch.tensor([name == config.query_order for name in config.key_orders], device=query.device)
    tried: list[tuple[torch.Tensor, BlockMask]] = []

    def choose() -> torch.Tensor:
        if len(orders) == 1:
            return torch.zeros(heads, dtype=torch.int64)
        errors = []
        for number, make in enumerate(orders):
            order = make(list(range(heads)))
            k, v = gather_tokens(key, order), gather_tokens(value, order)
            mask, error = config.select_reordered(query, k, v, grid, shares[number].expand(heads), measure=True)
            assert error is not None, "measured on request"
            tried.append((order, mask))
            errors.append(error.mean(0))
        return torch.stack(errors).argmin(0).cpu()

    choice = memory.get(("key_order", site, grid, heads), choose)
    places = choice.to(query.device)
    made = [partial(_of_heads, order) for order, _ in tried]
    order = _order_of_heads(made or orders, choice, query)
    key, value = gather_tokens(key, order), gather_tokens(value, order)
    if tried:
        mask = _mask_of_heads([mask for _, mask in tried], places)
    else:
        mask = config.select_reordered(query, key, value, grid, shares[places], measure=False)[0]
    return Selection(key, value, mask, order, shares[places])


def _of_heads(order: torch.Tensor, heads: list[int]) -> torch.Tensor:
    return order if order.ndim == 1 else order[heads]


def _order_of_heads(orders: Sequence[MakeOrder], choice: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The chosen order of each head on the device of `like`: `[S]` if one serves all, else `[H, S]`."""
    heads_of: dict[int, list[int]] = {}
    for head, number in enumerate(choice.tolist()):
        heads_of.setdefault(number, []).append(head)
    made = {number: orders[number](heads) for number, heads in heads_of.items()}
    if len(made) == 1:
        return next(iter(made.values()))
    chosen = torch.empty(len(choice), like.shape[2], dtype=torch.int64, device=like.device)
    for number, heads in heads_of.items():
        chosen[torch.tensor(heads, device=like.device)] = made[number]
    return chosen


def _mask_of_heads(masks: Sequence[BlockMask], choice: torch.Tensor) -> BlockMask:
    """A mask that takes each head from the mask of its choice."""
    heads = torch.arange(len(choice), device=choice.device)
    indices, counts = (
        torch.stack(parts)[choice, :, heads].transpose(0, 1).contiguous()
        for parts in ([mask.indices for mask in masks], [mask.counts for mask in masks])
    )
    return BlockMask(indices, counts, masks[0].q_layout, masks[0].kv_layout)
