"""Settings that all methods share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.orders import ORDER_NAMES
from fastdit.schedule import Schedule
from fastdit.validation import check_choice, check_count
from fastdit_kernels import BlockMask

IMPLEMENTATION_NAMES = ("auto", "triton", "flex", "torch", "reference")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Settings common to all methods.

    Args:
        schedule: Steps and layers that stay dense.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        order: Token order: `"gilbert"`, `"raster"`, `"space_major"` or `"frame_gilbert"`, see `orders.video_order`.
        min_tokens: Sequences shorter than this stay dense, because skipping would not pay.
        implementation: Kernel: `"auto"`, `"triton"`, `"flex"`, `"torch"` or `"reference"`.
    """

    method: ClassVar[str] = ""
    order_names: ClassVar[tuple[str, ...]] = ORDER_NAMES

    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    q_tile: int = 128
    kv_tile: int = 64
    order: str = "gilbert"
    min_tokens: int = 2048
    implementation: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise ConfigError(f"schedule={self.schedule!r}: accepted is a fastdit.Schedule")
        check_count("q_tile", self.q_tile, 1)
        check_count("kv_tile", self.kv_tile, 1)
        check_count("min_tokens", self.min_tokens)
        check_choice("order", self.order, self.order_names)
        check_choice("implementation", self.implementation, IMPLEMENTATION_NAMES)

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose the key tiles of one call.

        Args:
            query: `[B, H, S, D]` in tile order, after norms and RoPE.
            key: `[B, H, S, D]`, likewise.
            value: `[B, H, S, D]` in tile order.
            grid: Geometry, `S = grid.length`.
        """
        raise ConfigError(f"{type(self).__name__} has no selector: use a method such as fastdit.AdaptiveConfig")

    @property
    def needs_tensors(self) -> bool:
        """Whether masks depend on the tensors; if not, one mask serves all calls of a geometry."""
        return True

    def at_layer(self, layer: int, num_layers: int) -> AttentionConfig:
        """The settings of one layer.

        Args:
            layer: Number of the layer in its transformer.
            num_layers: Layers of the transformer.
        """
        return self

    @property
    def query_order(self) -> str:
        """Token order of the queries, a name that `orders.token_order` knows."""
        return self.order

    @property
    def key_orders(self) -> tuple[str, ...]:
        """Orders that keys and values may take, one chosen per head; empty if they share that of the queries.

        Names that `orders.token_order` knows, and `"score"`. A method with any has `select_reordered`.
        """
        return ()

    @property
    def corrects_mass(self) -> bool:
        """Whether the output is corrected for the mass that masks miss, see `compensation.corrected_attention`."""
        return False

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
        """Choose key tiles where keys and values may be in another order than the queries.

        Args:
            query: `[B, H, S, D]` in `query_order`.
            key: `[B, H, S, D]` in one of `key_orders`, which may differ between heads.
            value: In the order of `key`.
            grid: Geometry.
            shares_order: bool `[H]`: heads whose keys are in `query_order`.
            measure: Also estimate the error.

        Returns:
            The mask, and with `measure` the relative output error estimated for it, `[B, H]`.
        """
        raise ConfigError(f"{type(self).__name__} keeps keys in the order of the queries")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, with the method's name."""
        return {"method": self.method, **dataclasses.asdict(self)}
