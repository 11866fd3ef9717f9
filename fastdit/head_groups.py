"""Heads of one layer that follow different methods: split for selection, joined for the launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit.config import AttentionConfig, CachedConfig, MixedConfig
from fastdit.key_orders import Selection
from fastdit_kernels import BlockMask


@dataclass(frozen=True)
class MethodGroup:
    """Heads that one method selects for.

    Args:
        heads: Their numbers in the layer.
        config: The method.
    """

    heads: tuple[int, ...]
    config: AttentionConfig


@dataclass(frozen=True)
class HeadSplit:
    """How the heads of a layer are computed.

    Args:
        dense: Heads for the dense backend.
        launches: Kernel launches, each the groups of heads that share it: their tile sizes agree, and whether
            missed mass is corrected for.
    """

    dense: tuple[int, ...]
    launches: tuple[tuple[MethodGroup, ...], ...]


def split_heads(config: AttentionConfig, num_heads: int) -> HeadSplit:
    """What each head follows; all heads are one group unless the method is mixed, or reuses masks of a mixed one."""
    method = config.source if isinstance(config, CachedConfig) else config
    if not isinstance(method, MixedConfig):
        return HeadSplit((), ((MethodGroup(tuple(range(num_heads)), method),),))
    dense: tuple[int, ...] = ()
    launches: dict[tuple[int, int, bool], list[MethodGroup]] = {}
    for group in method.groups(num_heads):
        if isinstance(group.config, AttentionConfig):
            alike = group.config.q_tile, group.config.kv_tile, group.config.corrects_mass
            launches.setdefault(alike, []).append(MethodGroup(group.heads, group.config))
        else:
            dense = group.heads
    return HeadSplit(dense, tuple(tuple(groups) for groups in launches.values()))


def join_masks(masks: Sequence[BlockMask], heads: Sequence[int], batch: int) -> BlockMask:
    """Put masks of different heads side by side.

    Tiles of a level have the same numbers whatever levels follow, so a mask without pooling fits the buffer of one
    with it.

    Args:
        masks: Masks of equal segments and tile sizes; the numbers of levels may differ.
        heads: Heads of each mask.
        batch: Batch entries.
    """
    if len(masks) == 1:
        return masks[0]
    layout = max((mask.kv_layout for mask in masks), key=lambda one: one.num_levels)
    slots = max(mask.indices.shape[3] for mask in masks)
    indices, counts = [], []
    for mask, number in zip(masks, heads, strict=True):
        rows, used = mask.indices.shape[2:]
        indices.append(F.pad(mask.indices, (0, slots - used)).expand(batch, number, rows, slots))
        counts.append(mask.counts.expand(batch, number, rows))
    return BlockMask(torch.cat(indices, 1), torch.cat(counts, 1), masks[0].q_layout, layout)


def join_selections(selections: Sequence[Selection]) -> Selection:
    """Put the heads of several selections side by side."""
    if len(selections) == 1:
        return selections[0]
    heads = [selection.key.shape[1] for selection in selections]
    first = selections[0]
    mask = join_masks([selection.mask for selection in selections], heads, first.key.shape[0])
    shares = None
    if any(selection.shares_order is not None for selection in selections):
        shares = torch.cat([_shares(selection) for selection in selections])
    return Selection(
        torch.cat([selection.key for selection in selections], 1),
        torch.cat([selection.value for selection in selections], 1),
        mask,
        join_orders([selection.order for selection in selections], heads),
        shares,
    )


def join_orders(orders: Sequence[torch.Tensor], heads: Sequence[int]) -> torch.Tensor:
    """Orders of groups of heads as one: `[S]` if it is the same tensor for all, else `[H, S]`."""
    if all(order is orders[0] for order in orders) and orders[0].ndim == 1:
        return orders[0]
    return torch.cat([order.expand(number, -1) for order, number in zip(orders, heads, strict=True)])


def _shares(selection: Selection) -> torch.Tensor:
    if selection.shares_order is not None:
        return selection.shares_order
    return torch.ones(selection.key.shape[1], dtype=torch.bool, device=selection.key.device)
