"""Settings of the adaptive method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdit.config.base import AttentionConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.selectors import adaptive
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.tile_layout import MAX_LEVELS


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(AttentionConfig):
    """Keep, per query tile, the key tiles that carry a share `top_p` of the estimated softmax mass.

    The mass is estimated as `estimator` says (`selectors.adaptive`). The tile of the query itself and all text tiles
    are always kept and count towards the cap.

    Args:
        top_p: Share of the estimated mass to keep.
        min_density: Floor: least share of key tiles kept per query tile.
        max_density: Cap: largest share of key tiles kept per query tile.
        density: Fixed share instead: overrides the three above.
        estimator: `"mean"` of each tile (cheapest), `"sampled"` tokens, or `"antidiagonal"` runs (dearest).
        samples: Tokens of each tile that `"sampled"` looks at.
        stride: Run length of `"antidiagonal"`, a divisor of both tile sizes; its cost falls with it.
        min_similarity: Tiles whose members have a smaller mean cosine are always kept, past the cap; `None` for no
            such gate.
        pooled_level: What is not kept is covered by pooled tiles of up to this level (level `l` pools runs of `2**l`
            tokens), no key twice; they count towards the density, as one tile each. `None` drops it.
    """

    method: ClassVar[str] = "adaptive"

    top_p: float = 0.9
    min_density: float = 0.05
    max_density: float = 0.3
    density: float | None = None
    estimator: adaptive.EstimatorName = "mean"
    samples: int = 4
    stride: int = 8
    min_similarity: float | None = None
    pooled_level: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("top_p", self.top_p)
        check_fraction("min_density", self.min_density)
        check_fraction("max_density", self.max_density)
        if self.density is not None:
            check_fraction("density", self.density)
        check_choice("estimator", self.estimator, adaptive.ESTIMATOR_NAMES)
        check_count("samples", self.samples, 1)
        check_count("stride", self.stride, 1)
        if self.min_similarity is not None:
            check_fraction("min_similarity", self.min_similarity)
        if self.pooled_level is not None:
            check_count("pooled_level", self.pooled_level, 1)
            if self.pooled_level >= MAX_LEVELS:
                raise ConfigError(f"pooled_level={self.pooled_level}: accepted is an integer below {MAX_LEVELS}")
        if self.estimator == "antidiagonal" and (self.q_tile % self.stride or self.kv_tile % self.stride):
            raise ConfigError(
                f"stride={self.stride} with q_tile={self.q_tile} and kv_tile={self.kv_tile}: "
                "accepted is a divisor of both tile sizes"
            )
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
            estimator=self.estimator,
            samples=self.samples,
            stride=self.stride,
            min_similarity=self.min_similarity,
            pooled_level=self.pooled_level,
        )
