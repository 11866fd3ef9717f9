"""Settings of the adaptive method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdit.config.base import AttentionConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.selectors import adaptive
from fastdit.validation import check_fraction
from fastdit_kernels import BlockMask, TileLayout


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

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
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
