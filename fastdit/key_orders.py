"""Orders of queries and keys for each head: tries the pairs of a config once, remembers the best."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.mask_cache import MaskCache
from fastdit.order_trials import MakeOrder, OrderPair, trial_errors
from fastdit.orders import ShiftedOrder, shift_at, shifted, token_order
from fastdit.selectors.score_order import score_order
from fastdit.spans import span
from fastdit_kernels import BlockMask, TileLayout, gather_tokens, invert_order, scatter_from_tiles, unpad_from_tiles
from fastdit_kernels.tiled_tokens import TiledTokens, counts_passes

# The orders that each head of a layer is given; `None` for a head that settles its own.
GivenOrders = tuple[OrderPair | None, ...]


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
        tiles: `key` and `value` as they were put in order.
    """

    key: torch.Tensor
    value: torch.Tensor
    mask: BlockMask
    order: torch.Tensor
    shares_order: torch.Tensor | None = None
    dense_out: torch.Tensor | None = None
    tiles: tuple[TiledTokens, TiledTokens] | None = None

    def tiled(self) -> tuple[TiledTokens, TiledTokens]:
        """Keys and values for the kernel."""
        return self.tiles or (TiledTokens(self.key), TiledTokens(self.value))


@dataclass(frozen=True, eq=False)
class OrderedQuery:
    """Queries in tile order.

    Args:
        tiles: `[B, H, S, D]`.
        order: Their order, as a permutation of the model's sequence: `[S]`, or `[H, S]` for one per head.
        known_inverse: The inverse permutation, where it is kept.
    """

    tiles: TiledTokens
    order: torch.Tensor
    known_inverse: torch.Tensor | None = None

    @property
    def tokens(self) -> torch.Tensor:
        """`[B, H, S, D]`."""
        return self.tiles.tokens

    @property
    def inverse(self) -> torch.Tensor:
        """The inverse permutation."""
        return invert_order(self.order) if self.known_inverse is None else self.known_inverse


def on_device(values: Sequence[int] | Sequence[bool], device: torch.device, cache: MaskCache) -> torch.Tensor:
    """A few numbers as a tensor, kept from call to call: copying a list to a device waits for all work under way."""
    numbers = tuple(values)
    # With their type: to Python, (False, True) is (0, 1).
    key = "values", type(numbers[0]), numbers, device
    return cache.get(key, lambda: torch.tensor(numbers, device=device))


def named_order(grid: VideoGrid, order: ShiftedOrder, device: torch.device, cache: MaskCache) -> torch.Tensor:
    """A permutation of the model's sequence that follows from the geometry, `[S]`."""
    base = cache.get(("order", grid, order.name, device), lambda: token_order(grid, order.name).to(device))
    # A curve takes long to walk, but little to shift; those of all steps would fill the cache.
    return shifted(base, grid, order.shift)


def order_maker(query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, cache: MaskCache) -> MakeOrder:
    """Makes the orders of some heads, those from geometry and `"score"`, from tensors in the model's token order."""

    def make(order: ShiftedOrder, heads: Sequence[int]) -> torch.Tensor:
        if order.name != "score":
            return named_order(grid, order, query.device, cache)
        places = on_device(heads, query.device, cache)
        return score_order(query.index_select(1, places), key.index_select(1, places), grid)

    return make


def order_queries(
    query: torch.Tensor, orders: Sequence[ShiftedOrder], grid: VideoGrid, q_tile: int, cache: MaskCache
) -> OrderedQuery:
    """Put the queries of each head in its order, by a name that `orders.token_order` knows.

    Args:
        query: `[B, H, S, D]` in the model's token order, any strides.
        orders: The order of each head.
        grid: Geometry.
        q_tile: Query rows of a tile.
        cache: Holds the orders.
    """
    order = orders_of_heads(orders, lambda one, _: named_order(grid, one, query.device, cache), query, cache)
    inverse = None
    if order.ndim == 1 and orders[0].shift == 0:
        inverse = cache.get(("inverse", grid, orders[0], query.device), lambda: invert_order(order))
    with span("gather"):
        tiles = TiledTokens.in_order(query, order, TileLayout(grid.query_segments, q_tile))
    return OrderedQuery(tiles, order, inverse)


def put_back(out: torch.Tensor, layout: TileLayout, query: OrderedQuery) -> torch.Tensor:
    """Undo `order_queries` for an output.

    Args:
        out: `[B, H, R, D]` in tile order, with padding rows as `layout` has them.
        layout: One level.
        query: The queries that it belongs to.

    Returns:
        `[B, S, H, D]` in the model's token order.
    """
    if counts_passes(out):
        return scatter_from_tiles(out, query.order, layout, token_major=True).transpose(1, 2)
    out = unpad_from_tiles(out, layout)
    if query.order.ndim == 1:
        return out.transpose(1, 2).index_select(1, query.inverse)
    return gather_tokens(out, query.inverse).transpose(1, 2)


def keys_in_order(
    key: torch.Tensor, value: torch.Tensor, order: torch.Tensor, layout: TileLayout
) -> tuple[TiledTokens, TiledTokens]:
    """Put keys and values in order.

    Args:
        key: `[B, H, S, D]` in the model's token order.
        value: Likewise.
        order: Token of each place, `[S]` or `[H, S]`.
        layout: Key tiles; level 0 counts.
    """
    layout = TileLayout(layout.segments, layout.tile)
    return TiledTokens.in_order(key, order, layout), TiledTokens.in_order(value, order, layout)


def has_choice(config: AttentionConfig, grid: VideoGrid) -> bool:
    """Whether heads have orders to settle: the method has several pairs, and the video more than a single tile."""
    return len(config.order_pairs) > 1 and grid.query_segments[0] > config.q_tile


def settled_pairs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    make: MakeOrder,
    memory: MaskCache,
    site: Hashable,
) -> list[OrderPair]:
    """The pair of orders of each head, tried in the first call of a site; the first one if the video is a single tile.

    Args:
        query: `[B, H, S, D]` in the model's token order.
        key: Likewise.
        value: Likewise.
        grid: Geometry.
        config: Method with `order_pairs`.
        make: Makes an order.
        memory: Holds the choice of each site, on the host: settling waits for the device, later calls do not.
        site: Names the layer.
    """
    pairs, heads = config.order_pairs, query.shape[1]
    if not has_choice(config, grid):
        return [pairs[0]] * heads

    def choose() -> torch.Tensor:
        return trial_errors(query, key, value, grid, config, make).mean(1).argmin(0).cpu()

    choice = memory.get(settled_key(site, grid, heads), choose)
    return [pairs[number] for number in choice.tolist()]


def settled_key(site: Hashable, grid: VideoGrid, heads: int) -> Hashable:
    """Under which the numbers of the pairs that heads settled on are remembered, int64 `[H]` on the host."""
    return "orders", site, grid, heads


def shifted_pairs(
    pairs: Sequence[OrderPair], config: AttentionConfig, step: int | None
) -> list[tuple[ShiftedOrder, ShiftedOrder]]:
    """Orders of queries and keys as heads have them in a step.

    Args:
        pairs: As the heads settled on them.
        config: Their method.
        step: Denoising step; `None` for a call that stands alone.
    """
    shift = shift_at(step) if step is not None and config.shift_tiles and config.pools_tiles else 0
    return [(ShiftedOrder(first, shift), ShiftedOrder(second, shift)) for first, second in pairs]


def orders_of_heads(
    orders: Sequence[ShiftedOrder], make: MakeOrder, like: torch.Tensor, cache: MaskCache
) -> torch.Tensor:
    """The order of each head on the device of `like` `[B, H, S, D]`: `[S]` if one serves all, else `[H, S]`."""
    heads_of: dict[ShiftedOrder, list[int]] = {}
    for head, order in enumerate(orders):
        heads_of.setdefault(order, []).append(head)
    made = {order: make(order, heads) for order, heads in heads_of.items()}
    if len(made) == 1:
        return next(iter(made.values()))
    chosen = torch.empty(len(orders), like.shape[2], dtype=torch.int64, device=like.device)
    for order, heads in heads_of.items():
        chosen[on_device(heads, like.device, cache)] = made[order]
    return chosen
