"""What a selector is given and what it answers when selectors are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from fastdit import VideoGrid
from fastdit.errors import ConfigError
from fastdit.orders import ORDER_NAMES, token_order
from fastdit_eval.attention_heads import AttentionHeads
from fastdit_kernels import BlockMask, TileLayout, block_mass, block_sparse_attention, gather_tokens


@dataclass(frozen=True)
class OrderedTokens:
    """Heads in one token order.

    Args:
        order: Indices into the model's sequence, int64 `[S]`.
        query: `[1, H, S, D]`.
        key: Likewise.
        value: Likewise.
    """

    order: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class Answer:
    """A mask, and the tokens in the order it is meant for. Queries and keys may be in different orders.

    Args:
        mask: Over tiles of the ordered tokens.
        q_order: Order of the queries as indices into the model's sequence, `[S]`, or `[H, S]` for one per head.
        key: `[1, H, S, D]` as the mask counts them.
        value: Likewise.
        first_order_rows: Of pooled tiles, see `block_sparse_attention`.
    """

    mask: BlockMask
    q_order: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    first_order_rows: int = 0


class SelectorTask:
    """Heads, tiles and the exact result, shared by all selectors; what is derived is computed once.

    Args:
        heads: Queries, keys and values.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
    """

    def __init__(self, heads: AttentionHeads, q_tile: int, kv_tile: int) -> None:
        if heads.grid.text_length:
            raise ConfigError(
                f"{heads.name} has {heads.grid.text_length} text tokens in its sequence: accepted are heads without "
                "text, since the baselines are defined on video tokens"
            )
        if heads.grid.kept_frames:
            raise ConfigError(
                f"{heads.name} has {heads.grid.kept_frames} frames that are always kept: accepted are heads without, "
                "since the baselines choose from all video tokens"
            )
        self.heads, self.q_tile, self.kv_tile = heads, q_tile, kv_tile
        self._ordered: dict[str, OrderedTokens] = {}
        self._mass: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}
        # While a selection is timed, nothing of earlier ones may be used.
        self.is_timed = False

    @property
    def grid(self) -> VideoGrid:
        """Geometry."""
        return self.heads.grid

    @property
    def num_heads(self) -> int:
        """Heads compared at once."""
        return self.heads.query.shape[1]

    @property
    def q_layout(self) -> TileLayout:
        """Query tiles."""
        return TileLayout(self.grid.query_segments, self.q_tile)

    @property
    def kv_layout(self) -> TileLayout:
        """Key tiles."""
        return TileLayout(self.grid.key_segments, self.kv_tile)

    def tiles_at(self, density: float) -> int:
        """Key tiles per row at a density, at least one."""
        return max(1, round(density * self.kv_layout.num_tiles))

    def ordered(self, name: str) -> OrderedTokens:
        """The tokens in a named order."""
        if name not in self._ordered:
            order = token_order(self.grid, name)
            tensors = (gather_tokens(x, order) for x in (self.heads.query, self.heads.key, self.heads.value))
            self._ordered[name] = OrderedTokens(order, *tensors)
        return self._ordered[name]

    @cached_property
    def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense output `[1, H, S, D]` and natural-log LSE `[1, H, S]`, fp32."""
        keep = torch.ones(1, 1, self.q_layout.num_tiles, self.kv_layout.num_tiles, dtype=torch.bool)
        heads = self.heads
        return block_sparse_attention(heads.query, heads.key, heads.value, self.mask(keep), return_lse=True)

    def true_mass(self, name: str) -> torch.Tensor:
        """Exact softmax mass of the tile pairs in a named order, `[1, H, NQ, NK]`."""
        if name not in self._mass:
            tokens = self.ordered(name)
            lse = self.exact[1][..., tokens.order]
            self._mass[name] = block_mass(tokens.query, tokens.key, lse, self.q_layout, self.kv_layout)
        return self._mass[name]

    def once(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What a selector needs at every knob alike, kept while its knob is searched and computed anew when timed."""
        if self.is_timed:
            return compute()
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    def mask(self, keep: torch.Tensor) -> BlockMask:
        """A mask from a table of tile pairs, bool `[1, H or 1, NQ, NK]`."""
        length = self.grid.length
        return BlockMask.from_dense(keep, q_len=length, kv_len=length, q_tile=self.q_tile, kv_tile=self.kv_tile)

    def prepare(self) -> None:
        """Compute what no selector is charged for: the orders and the exact result."""
        for name in ORDER_NAMES:
            self.true_mass(name)

    def dense(self) -> torch.Tensor:
        """PyTorch's own dense attention, the cost that selection is compared with."""
        return F.scaled_dot_product_attention(self.heads.query, self.heads.key, self.heads.value)


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A way of choosing, and how to ask it for a density.

    Args:
        name: Label.
        kind: `"ours"`, `"baseline"` or `"oracle"`.
        source: Where it was published, or the config it stands for.
        select: Answers from a task, a knob and the density asked for.
        knob: Range of the knob, over which density grows and which is bisected to the density asked for; `None` if the
            density itself is the knob.
    """

    name: str
    kind: str
    source: str
    select: Callable[[SelectorTask, float, float], Answer]
    knob: tuple[float, float] | None = None
