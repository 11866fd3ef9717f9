"""Heads of one layer that follow different methods: split by what can be done in one call, selected for, joined."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import torch
import torch.nn.functional as F

from fastdit.config import AttentionConfig, CachedConfig, MixedConfig
from fastdit.grid import VideoGrid
from fastdit.mask_cache import MaskCache
from fastdit_kernels import BlockMask


@dataclass(frozen=True)
class MethodGroup:
    """Heads that one method selects for.

    Args:
        heads: Their numbers in the layer.
        config: The method.
        reuse: How its masks are reused; `None` if they are not.
        joint: Groups of a launch that agree in it stand side by side and select in one call.
    """

    heads: tuple[int, ...]
    config: AttentionConfig
    reuse: CachedConfig | None = None
    joint: Hashable = None


@dataclass(frozen=True)
class HeadSplit:
    """How the heads of a layer are computed.

    Args:
        dense: Heads for the dense backend.
        launches: Kernel launches, each the groups of heads that share it: their tile sizes agree, whether
            missed mass is corrected for, whether pooled tiles are taken to first order, and how masks are reused.
    """

    dense: tuple[int, ...]
    launches: tuple[tuple[MethodGroup, ...], ...]


def split_heads(config: AttentionConfig, num_heads: int) -> HeadSplit:
    """What each head follows; all heads are one group unless the method is mixed, or reuses masks of a mixed one."""
    whole = config if isinstance(config, CachedConfig) else None
    method = config if whole is None else whole.source
    if not isinstance(method, MixedConfig):
        return HeadSplit((), ((MethodGroup(tuple(range(num_heads)), method, whole),),))
    dense: tuple[int, ...] = ()
    launches: dict[tuple[Any, ...], dict[Hashable, list[MethodGroup]]] = {}
    for number, group in enumerate(method.groups(num_heads)):
        if isinstance(group.config, AttentionConfig):
            own = group.config if isinstance(group.config, CachedConfig) else None
            source, reuse = group.config if own is None else own.source, whole or own
            rule = None if reuse is None else reuse.reuse_rule
            alike = source.q_tile, source.kv_tile, source.corrects_mass, source.first_order, rule
            together = source.selects_with
            joint = number if together is None else together
            members = launches.setdefault(alike, {}).setdefault(joint, [])
            members.append(MethodGroup(group.heads, source, reuse, joint))
        else:
            dense = group.heads
    return HeadSplit(dense, tuple(tuple(chain.from_iterable(sets.values())) for sets in launches.values()))


def select_masks(
    groups: Sequence[MethodGroup],
    numbers: Sequence[int],
    tensors: Sequence[torch.Tensor],
    shares: torch.Tensor | None,
    grid: VideoGrid,
    cache: MaskCache,
) -> BlockMask:
    """The mask of heads of one launch, each by its own method.

    Args:
        groups: The groups of the launch.
        numbers: How many heads of each group are given; may be 0.
        tensors: Query, key and value in tile order, `[B, H, S, D]`, `H` the sum of `numbers`.
        shares: bool `[H]`: heads whose keys are in the order of the queries; `None` if all are.
        grid: Geometry.
        cache: Holds masks that depend on the geometry alone.
    """
    masks, heads, done = [], [], 0
    present = [(group, number) for group, number in zip(groups, numbers, strict=True) if number > 0]
    for _, members in groupby(present, key=lambda pair: pair[0].joint):
        methods = [(group.config, number) for group, number in members]
        count = sum(number for _, number in methods)
        part = slice(done, done + count)
        some = None if shares is None else shares[part]
        masks.append(_select_together(methods, [x[:, part] for x in tensors], some, grid, cache))
        heads.append(count)
        done += count
    return join_masks(masks, heads, tensors[0].shape[0])


def _select_together(
    methods: Sequence[tuple[AttentionConfig, int]],
    tensors: Sequence[torch.Tensor],
    shares: torch.Tensor | None,
    grid: VideoGrid,
    cache: MaskCache,
) -> BlockMask:
    """The mask of heads whose methods agree in `selects_with`; `methods` with the number of heads of each."""
    (method, _), (query, key, value) = methods[0], tensors
    if len(methods) > 1:
        if shares is None:
            shares = torch.ones(query.shape[1], dtype=torch.bool, device=query.device)
        configs = [config for config, number in methods for _ in range(number)]
        (mask,) = method.select_heads(query, key, value, grid, shares, [configs])
        return mask
    if method.orders_heads:
        assert shares is not None, "known wherever a method reorders keys"
        return method.select_reordered(query, key, value, grid, shares)
    if method.needs_tensors:
        return method.select(query, key, value, grid)
    return cache.get(("mask", grid, method, query.device), lambda: method.select(query, key, value, grid))


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
