"""The one function between a processor and a kernel: order, select, attend, put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from fastdit.compensation import corrected_attention
from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.head_groups import MethodGroup, join_masks, join_orders, join_selections, split_heads
from fastdit.key_orders import Selection, select_per_head
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite, Rebuild
from fastdit.orders import token_order
from fastdit.run_memory import RunMemory
from fastdit.selectors.score_order import score_order
from fastdit.statistics import ReuseRecord, join_reuse
from fastdit.step_result import Launch, StepResult
from fastdit_kernels import BlockMask, block_sparse_attention, gather_tokens, invert_order

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
        memory: Holds what the run has settled: key orders, and masks of the cached method; `None` settles all anew.
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
        q, k, v = (_take(x, places).transpose(1, 2) for x in (query, key, value))
        q, chosen, reuse = _choose(q, k, v, grid, config, groups, cache, memory, site)
        part, mask = _attend(q, chosen, groups[0].config.corrects_mass, config.implementation)
        part = _put_back(part, groups, grid, cache)
        out = part if places is None else _fill(out, places, part, heads)
        launches.append(Launch(members, places, mask, q, chosen.key))
        records.append(reuse)
    if split.dense:
        places = _places(split.dense, heads, query.device, cache)
        part = dense(*(_take(x, places) for x in (query, key, value)))
        out = part if places is None else _fill(out, places, part, heads)
    assert out is not None, "a layer has heads"
    return StepResult(out, tuple(launches), split.dense, join_reuse(records))


def _attend(
    query: torch.Tensor, chosen: Selection, corrects_mass: bool, implementation: str
) -> tuple[torch.Tensor, BlockMask]:
    """Output in tile order, and the mask of what was computed for it."""
    if chosen.dense_out is not None:
        mask = chosen.mask
        return chosen.dense_out, BlockMask.full(mask.q_layout, mask.kv_layout, query.device)
    attend = corrected_attention if corrects_mass else block_sparse_attention
    return attend(query, chosen.key, chosen.value, chosen.mask, implementation=implementation), chosen.mask


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
        Queries in `config.query_order`; the mask with its keys and values; what the cached method did.
    """
    split = split_heads(config, query.shape[1])
    assert len(split.launches) == 1, "heads are computed in several ways"
    return _choose(query, key, value, grid, config, split.launches[0], cache, memory, site)


def _choose(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    groups: Sequence[MethodGroup],
    cache: MaskCache,
    memory: RunMemory | None,
    site: CallSite | None,
) -> tuple[torch.Tensor, Selection, ReuseRecord | None]:
    """`choose_tiles` for the heads of one launch, those of each group side by side."""
    sizes = [len(group.heads) for group in groups]
    order = join_orders([_orders(grid, g.config.query_order, query.device, cache)[0] for g in groups], sizes)
    # The gather also makes [B, H, S, D] contiguous.
    q = gather_tokens(query, order)

    def build() -> Selection:
        parts = zip(groups, *(x.split(sizes, 1) for x in (query, q, key, value)), strict=True)
        return join_selections([_select(group, tensors, grid, cache, memory, site) for group, *tensors in parts])

    def rebuild(places: list[int], tensors: Sequence[torch.Tensor], shares: torch.Tensor | None) -> BlockMask:
        return _select_anew(groups, places, tensors, shares, grid)

    builders: tuple[Callable[[], Selection], Rebuild] = (build, rebuild)
    if isinstance(config, CachedConfig) and config.mass == "exact":
        builders = _exact_builders(config, q, key, value, order, grid)
    if isinstance(config, CachedConfig) and memory is not None and site is not None:
        site = dataclasses.replace(site, head=groups[0].heads[0])
        chosen, reuse = memory.masks.choose(config, q, key, value, grid, site, *builders)
        return q, chosen, reuse
    # A call that stands alone has nothing to keep the mask for, so it uses the mask at once.
    return q, dataclasses.replace(builders[0](), dense_out=None), None


def _exact_builders(
    config: CachedConfig,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    order: torch.Tensor,
    grid: VideoGrid,
) -> tuple[Callable[[], Selection], Rebuild]:
    """Selection by the exact mass, for all heads and for some."""

    def build() -> Selection:
        k, v = gather_tokens(key, order), gather_tokens(value, order)
        mask, out = config.select_exact(query, k, v, grid)
        return Selection(k, v, mask, order, dense_out=out)

    def rebuild(places: list[int], tensors: Sequence[torch.Tensor], shares: torch.Tensor | None) -> BlockMask:
        q, k, v = tensors
        return config.select_exact(q, k, v, grid)[0]

    return build, rebuild


def _select(
    group: MethodGroup,
    tensors: Sequence[torch.Tensor],
    grid: VideoGrid,
    cache: MaskCache,
    memory: RunMemory | None,
    site: CallSite | None,
) -> Selection:
    """The selection of one method for its heads; `tensors` are query, query in tile order, key and value of them."""
    method, (query, q, key, value) = group.config, tensors
    if method.key_orders:
        orders = [partial(_key_order, name, query, key, grid, cache) for name in method.key_orders]
        settled = MaskCache() if memory is None else memory.key_orders
        place = None if site is None else (site.transformer, site.layer, group.heads[0])
        return select_per_head(q, key, value, grid, method, orders, settled, place)
    order = _orders(grid, method.query_order, q.device, cache)[0]
    k, v = gather_tokens(key, order), gather_tokens(value, order)
    if method.needs_tensors:
        return Selection(k, v, method.select(q, k, v, grid), order)
    return Selection(k, v, cache.get(("mask", grid, method, q.device), lambda: method.select(q, k, v, grid)), order)


def _select_anew(
    groups: Sequence[MethodGroup],
    places: list[int],
    tensors: Sequence[torch.Tensor],
    shares: torch.Tensor | None,
    grid: VideoGrid,
) -> BlockMask:
    """The mask of some heads of a launch, `places` rising, from their tensors in tile order."""
    masks, numbers, first, done = [], [], 0, 0
    for group in groups:
        number = sum(first <= place < first + len(group.heads) for place in places)
        first += len(group.heads)
        if number == 0:
            continue
        q, k, v = (x[:, done : done + number] for x in tensors)
        if group.config.key_orders:
            assert shares is not None, "kept with the masks of methods that reorder keys"
            part = shares[done : done + number]
            masks.append(group.config.select_reordered(q, k, v, grid, part, measure=False)[0])
        else:
            masks.append(group.config.select(q, k, v, grid))
        numbers.append(number)
        done += number
    return join_masks(masks, numbers, tensors[0].shape[0])


def _places(members: tuple[int, ...], heads: int, device: torch.device, cache: MaskCache) -> torch.Tensor | None:
    """Head numbers on the device, kept there from call to call; `None` for all heads in their order."""
    if members == tuple(range(heads)):
        return None
    return cache.get(("heads", members, device), lambda: torch.tensor(members, device=device))


def _take(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    return x if places is None else x.index_select(2, places)


def _fill(out: torch.Tensor | None, places: torch.Tensor, part: torch.Tensor, heads: int) -> torch.Tensor:
    """Put `[B, S, h, D]` of some heads among all of them."""
    if out is None:
        out = part.new_empty((*part.shape[:2], heads, part.shape[3]))
    return out.index_copy_(2, places, part)


def _put_back(out: torch.Tensor, groups: Sequence[MethodGroup], grid: VideoGrid, cache: MaskCache) -> torch.Tensor:
    """From `[B, H, S, D]` in the order of the queries to `[B, S, H, D]` in the model's."""
    inverses = [_orders(grid, group.config.query_order, out.device, cache)[1] for group in groups]
    inverse = join_orders(inverses, [len(group.heads) for group in groups])
    if inverse.ndim == 1:
        return out.transpose(1, 2).index_select(1, inverse)
    return gather_tokens(out, inverse).transpose(1, 2)


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
