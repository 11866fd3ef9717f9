"""Settings of the pyramid method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdit.config.base import AttentionConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.orders import ORDER_NAMES
from fastdit.selectors import pyramid
from fastdit.selectors.own_tiles import own_tiles
from fastdit.validation import check_count, check_fraction
from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.tile_layout import MAX_LEVELS

AUTO_ORDERS = ("gilbert", "raster", "space_major", "score")


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(AttentionConfig):
    """Cover the keys with tiles of several pooling levels: important places fine, the rest coarse or not at all.

    Each query tile gets the combination of tiles that is estimated to err least (`selectors.pyramid`). Text tiles stay
    at level 0 and count towards `density`. Queries are in Gilbert order; `order` is that of keys and values.

    Args:
        density: Share of key tiles per query tile; a tile of any level costs the same.
        num_levels: Pooling levels, level 0 included; level `l` pools runs of `2**l` tokens.
        q_samples: Rows sampled of each query tile.
        kv_samples: Tokens seen of each key tile by the estimates; `None` for all. Fewer are cheaper, but miss peaks.
        keep_own_tile: Keep the key tiles of the query's own place at level 0, in heads whose keys share the order of
            the queries; they count towards `density`. `None` does so where peaks may be missed, with `kv_samples`.
        order: A name that `orders.video_order` knows, `"score"` (by attention received, per head), or `"auto"`: per
            head the one of `AUTO_ORDERS` that errs least on the sampled rows, settled once per run and layer.
    """

    method: ClassVar[str] = "pyramid"
    order_names: ClassVar[tuple[str, ...]] = (*ORDER_NAMES, "score", "auto")

    order: str = "auto"
    density: float = 0.2
    num_levels: int = 6
    q_samples: int = 4
    kv_samples: int | None = None
    keep_own_tile: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("density", self.density)
        for name in ("num_levels", "q_samples"):
            check_count(name, getattr(self, name), 1)
        if self.num_levels > MAX_LEVELS:
            raise ConfigError(f"num_levels={self.num_levels}: accepted is an integer of at most {MAX_LEVELS}")
        if self.kv_samples is not None:
            check_count("kv_samples", self.kv_samples, 1)

    @property
    def query_order(self) -> str:
        """Gilbert order: query tiles stay compact whatever order the keys take."""
        return "gilbert"

    @property
    def key_orders(self) -> tuple[str, ...]:
        """The candidates of each head."""
        return AUTO_ORDERS if self.order == "auto" else (self.order,)

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose tiles for keys in the order of the queries; see `selectors.pyramid.select`."""
        shares_order = torch.ones(query.shape[1], dtype=torch.bool, device=query.device)
        return self.select_reordered(query, key, value, grid, shares_order, measure=False)[0]

    def select_reordered(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        *,
        measure: bool,
    ) -> tuple[BlockMask, torch.Tensor | None]:
        """Choose tiles for keys in any order."""
        q_layout = TileLayout(grid.segments, self.q_tile)
        kv_layout = TileLayout(grid.segments, self.kv_tile, self.num_levels)
        keep_own = self.kv_samples is not None if self.keep_own_tile is None else self.keep_own_tile
        forced, max_forced = None, 0
        if keep_own:
            video_q, video_kv = q_layout.segment_tiles(0)[0], kv_layout.segment_tiles(0)[0]
            own = own_tiles(q_layout, TileLayout(grid.segments, self.kv_tile), query.device)
            forced = own[:video_q, :video_kv] & shares_order.view(-1, 1, 1)
            # A run of q_tile tokens touches at most this many key tiles.
            max_forced = min(video_kv, (self.q_tile - 2) // self.kv_tile + 2)
        return pyramid.select(
            query,
            key,
            value,
            q_layout,
            kv_layout,
            budget=max(1, round(self.density * kv_layout.num_tiles)),
            q_samples=self.q_samples,
            kv_samples=self.kv_samples,
            forced=forced,
            max_forced=max_forced,
            measure=measure,
        )
