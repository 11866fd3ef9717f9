"""What users choose: one frozen config per method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.orders import ORDER_NAMES
from fastdit.schedule import Schedule
from fastdit.selectors import adaptive
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels import BlockMask, TileLayout

IMPLEMENTATION_NAMES = ("auto", "triton", "flex", "torch", "reference")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Settings common to all methods.

    Args:
        schedule: Steps and layers that stay dense.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        order: Token order: `"gilbert"`, `"raster"` or `"space_major"`.
        min_tokens: Sequences shorter than this stay dense, because skipping would not pay.
        implementation: Kernel: `"auto"`, `"triton"`, `"flex"`, `"torch"` or `"reference"`.
    """

    method: ClassVar[str] = ""

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
        check_choice("order", self.order, ORDER_NAMES)
        check_choice("implementation", self.implementation, IMPLEMENTATION_NAMES)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose the key tiles of one call.

        Args:
            query: `[B, H, S, D]` in tile order, after norms and RoPE.
            key: `[B, H, S, D]`, likewise.
            grid: Geometry, `S = grid.length`.
        """
        raise ConfigError(f"{type(self).__name__} has no selector: use a method such as fastdit.AdaptiveConfig")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, with the method's name."""
        return {"method": self.method, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(AttentionConfig):
    """Keep, per query tile, the key tiles that carry a share `top_p` of the estimated softmax mass.

    The mass is estimated from tile means (`selectors.adaptive`). The tile of the query itself and all text tiles are
    always kept and count towards the cap.

    Args:
        top_p: Share of the estimated mass to keep.
        min_density: Floor: least share of key tiles kept per query tile.
        max_density: Cap: largest share of key tiles kept per query tile.
        density: Fixed share instead: overrides the three above.
    """

    method: ClassVar[str] = "adaptive"

    top_p: float = 0.9
    min_density: float = 0.05
    max_density: float = 0.3
    density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("top_p", self.top_p)
        check_fraction("min_density", self.min_density)
        check_fraction("max_density", self.max_density)
        if self.density is not None:
            check_fraction("density", self.density)
        if self.min_density > self.max_density:
            raise ConfigError(
                f"min_density={self.min_density} is above max_density={self.max_density}: "
                "the floor must not pass the cap"
            )

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose tiles by estimated mass; see `selectors.adaptive.select`."""
        q_layout, kv_layout = TileLayout(grid.segments, self.q_tile), TileLayout(grid.segments, self.kv_tile)
        low, high = (self.min_density, self.max_density) if self.density is None else (self.density, self.density)
        return adaptive.select(
            query,
            key,
            q_layout,
            kv_layout,
            top_p=self.top_p if self.density is None else None,
            min_tiles=max(1, round(low * kv_layout.num_tiles)),
            max_tiles=max(1, round(high * kv_layout.num_tiles)),
        )


METHODS: dict[str, type[AttentionConfig]] = {AdaptiveConfig.method: AdaptiveConfig}
