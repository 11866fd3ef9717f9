"""The one function between a processor and a kernel: order, select, attend, put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from fastdit.compensation import corrected_attention
from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.head_groups import MethodGroup, select_masks, split_heads
from fastdit.key_orders import (
    OrderedQuery,
    Selection,
    keys_in_order,
    on_device,
    order_maker,
    order_queries,
    orders_of_heads,
    put_back,
    settled_pairs,
    shifted_pairs,
)
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite, Rebuild
from fastdit.order_trials import OrderPair
from fastdit.orders import ShiftedOrder
from fastdit.run_memory import RunMemory
from fastdit.spans import span
from fastdit.statistics import ReuseRecord, join_reuse
from fastdit.step_result import Launch, StepResult
from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.attention import attend_tiles

# Dense attention: query, key and value `[B, S, H, D]`, after norms and RoPE, to the output in the same shape.
DenseAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """PyTorch's dense attention on `[B, S, H, D]`."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out: torch.Tensor = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2)


def sparse_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    memory: RunMemory | None = None,
    site: CallSite | None = None,
    dense: DenseAttention = sdpa,
) -> StepResult:
    """Sparse attention of one layer.

    Args:
        query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
        key: `[B, S, H, D]`.
        value: `[B, S, H, D]`.
        grid: Geometry, `S = grid.length`.
        config: Method and settings.
        cache: Holds the token orders, and masks that depend on the geometry alone.
        memory: Holds what the run has settled: orders, and masks of the cached method; `None` settles all anew.
        site: Which call of the run it is.
        dense: Computes the heads that a mixed config leaves dense.

    Returns:
        The output in the model's order, the masks that were used, and what they were chosen from.
    """
    heads = query.shape[2]
    split = split_heads(config, heads)
    out = None
    launches: list[Launch] = []
    records: list[ReuseRecord | None] = []
    for groups in split.launches:
        members = tuple(head for group in groups for head in group.heads)
        places = _places(members, heads, query.device, cache)
        mine, k, v = (_take(x, places).transpose(1, 2) for x in (query, key, value))
        with span("selection"):
            q, chosen, reuse = _choose(mine, k, v, grid, groups, cache, memory, site)
        with span("kernel"):
            part, layout = attend_ordered(q, chosen, groups[0].config)
        with span("gather"):
            part = put_back(part, layout, q)
        out = part if places is None else _fill(out, places, part, heads)
        mask = chosen.mask
        if chosen.dense_out is not None:
            mask = BlockMask.full(mask.q_layout, mask.kv_layout, query.device)
        launches.append(Launch(members, places, mask, q.tokens, chosen.key, q.order, chosen.order))
        records.append(reuse)
    if split.dense:
        places = _places(split.dense, heads, query.device, cache)
        part = dense(*(_take(x, places) for x in (query, key, value)))
        out = part if places is None else _fill(out, places, part, heads)
    assert out is not None, "a layer has heads"
    return StepResult(out, tuple(launches), split.dense, join_reuse(records))


def attend_ordered(query: OrderedQuery, chosen: Selection, config: AttentionConfig) -> tuple[torch.Tensor, TileLayout]:
    """The kernel's part of `sparse_step`.

    Args:
        query: Queries in tile order.
        chosen: The mask with its keys and values.
        config: The method of the heads, or one of them; all agree in the kernel and in what is done to the output.

    Returns:
        Output in tile order, and where its rows lie: with padding as the kernel left it, or without.
    """
    unpadded = TileLayout((query.tokens.shape[2],), 1)
    if chosen.dense_out is not None:
        return chosen.dense_out, unpadded
    key, value = chosen.tiled()
    rows, implementation = config.first_order_rows, config.implementation
    if config.corrects_mass:
        out = corrected_attention(
            query.tiles, key, value, chosen.mask, first_order_rows=rows, implementation=implementation
        )
        return out, unpadded
    out, _ = attend_tiles(query.tiles, key, value, chosen.mask, first_order_rows=rows, implementation=implementation)
    return out, chosen.mask.q_layout


def choose_tiles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    memory: RunMemory | None = None,
    site: CallSite | None = None,
) -> tuple[OrderedQuery, Selection, ReuseRecord | None]:
    """Everything of `sparse_step` that comes before the kernel, for a method whose heads share one launch.

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
        Queries in tile order; the mask with its keys and values; what the cached method did.
    """
    split = split_heads(config, query.shape[1])
    assert len(split.launches) == 1, "heads are computed in several ways"
    return _choose(query, key, value, grid, split.launches[0], cache, memory, site)


def _choose(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    groups: Sequence[MethodGroup],
    cache: MaskCache,
    memory: RunMemory | None,
    site: CallSite | None,
) -> tuple[OrderedQuery, Selection, ReuseRecord | None]:
    """`choose_tiles` for the heads of one launch, those of each group side by side."""
    rule = groups[0].reuse
    sizes = [len(group.heads) for group in groups]
    split = [part.split(sizes, 1) for part in (query, key, value)]
    settled = [settle_orders(g, x, grid, cache, memory, site) for g, *x in zip(groups, *split, strict=True)]
    step = None if site is None else site.step
    if rule is not None and memory is not None and site is not None:
        site = dataclasses.replace(site, head=groups[0].heads[0])
        step = memory.masks.step_of(rule, query, grid, site)
    pairs = [
        pair for group, some in zip(groups, settled, strict=True) for pair in shifted_pairs(some, group.config, step)
    ]
    q = order_queries(query, [order for order, _ in pairs], grid, groups[0].config.q_tile, cache)

    def build() -> Selection:
        return _select(groups, pairs, (query, key, value, q.tokens), grid, cache)

    def rebuild(places: list[int], tensors: Sequence[torch.Tensor], shares: torch.Tensor | None) -> BlockMask:
        return select_masks(groups, _count_places(sizes, places), tensors, shares, grid, cache)

    builders: tuple[Callable[[], Selection], Rebuild] = (build, rebuild)
    if rule is not None and rule.mass == "exact":
        builders = _exact_builders(rule, q, key, value, grid)
    if rule is not None and memory is not None and site is not None:
        chosen, reuse = memory.masks.choose(rule, q.tokens, key, value, grid, site, *builders)
        return q, chosen, reuse
    # A call that stands alone has nothing to keep the mask for, so it uses the mask at once.
    return q, dataclasses.replace(builders[0](), dense_out=None), None


def _exact_builders(
    config: CachedConfig,
    query: OrderedQuery,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
) -> tuple[Callable[[], Selection], Rebuild]:
    """Selection by the exact mass, for all heads and for some."""

    def build() -> Selection:
        with span("gather"):
            layout = TileLayout(grid.key_segments, config.kv_tile)
            tiles = keys_in_order(key, value, query.order, layout)
        k, v = (part.tokens for part in tiles)
        mask, out = config.select_exact(query.tokens, k, v, grid)
        return Selection(k, v, mask, query.order, dense_out=out, tiles=tiles)

    def rebuild(places: list[int], tensors: Sequence[torch.Tensor], shares: torch.Tensor | None) -> BlockMask:
        q, k, v = tensors
        return config.select_exact(q, k, v, grid)[0]

    return build, rebuild


def settle_orders(
    group: MethodGroup,
    tensors: Sequence[torch.Tensor],
    grid: VideoGrid,
    cache: MaskCache,
    memory: RunMemory | None,
    site: CallSite | None,
) -> list[OrderPair]:
    """Orders of queries and keys of each head of a group: those that `site` gives, or else what is settled.

    Args:
        group: Heads of a layer.
        tensors: Their query, key and value, `[B, H, S, D]` in the model's token order.
        grid: Geometry.
        cache: As in `sparse_step`.
        memory: As in `sparse_step`.
        site: As in `sparse_step`.
    """
    given: list[OrderPair | None] = [None] * len(group.heads)
    if site is not None and site.orders is not None:
        given = [site.orders[head] for head in group.heads]
    known = [pair for pair in given if pair is not None]
    if len(known) == len(given):
        return known
    query, key, value = tensors
    settled = MaskCache() if memory is None else memory.orders
    place = None if site is None else (site.transformer, site.layer, site.phase, group.heads[0])
    make = order_maker(query, key, grid, cache)
    found = settled_pairs(query, key, value, grid, group.config, make, settled, place)
    return [own if first is None else first for first, own in zip(given, found, strict=True)]


def _select(
    groups: Sequence[MethodGroup],
    pairs: Sequence[tuple[ShiftedOrder, ShiftedOrder]],
    tensors: Sequence[torch.Tensor],
    grid: VideoGrid,
    cache: MaskCache,
) -> Selection:
    """The selection for all heads of a launch; `tensors` are their query, key, value, and query in tile order."""
    query, key, value, q = tensors
    order = orders_of_heads([order for _, order in pairs], order_maker(query, key, grid, cache), key, cache)
    with span("gather"):
        tiles = keys_in_order(key, value, order, TileLayout(grid.key_segments, groups[0].config.kv_tile))
    k, v = (part.tokens for part in tiles)
    shares = None
    if any(group.config.orders_heads for group in groups):
        shares = on_device([one == other for one, other in pairs], q.device, cache)
    sizes = [len(group.heads) for group in groups]
    mask = select_masks(groups, sizes, (q, k, v), shares, grid, cache)
    return Selection(k, v, mask, order, shares, tiles=tiles)


def _count_places(sizes: Sequence[int], places: Sequence[int]) -> list[int]:
    """How many of some heads of a launch belong to each of its groups of `sizes`."""
    ends = list(accumulate(sizes))
    return [sum(end - size <= place < end for place in places) for size, end in zip(sizes, ends, strict=True)]


def _places(members: tuple[int, ...], heads: int, device: torch.device, cache: MaskCache) -> torch.Tensor | None:
    """Head numbers on the device; `None` for all heads in their order."""
    return None if members == tuple(range(heads)) else on_device(members, device, cache)


def _take(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    return x if places is None else x.index_select(2, places)


def _fill(out: torch.Tensor | None, places: torch.Tensor, part: torch.Tensor, heads: int) -> torch.Tensor:
    """Put `[B, S, h, D]` of some heads among all of them."""
    if out is None:
        out = part.new_empty((*part.shape[:2], heads, part.shape[3]))
    return out.index_copy_(2, places, part)
