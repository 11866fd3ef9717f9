"""Settings of the adaptive method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F

from fastdit.config.base import HEAD_ORDER_NAMES, AttentionConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.selectors import adaptive
from fastdit.selectors.sampled_error import sample_exactly
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.tile_layout import MAX_LEVELS

Complement = Literal["none", "all", "auto"]


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
        estimator: `"mean"` of each tile (cheapest), `"sampled"` tokens, `"antidiagonal"` runs (dearest), or sampled
            `"rows"` of each query tile against all keys.
        samples: Tokens of each tile that `"sampled"` looks at; of each query tile for `"rows"`.
        stride: Run length of `"antidiagonal"`, a divisor of both tile sizes; its cost falls with it.
        min_similarity: Tiles whose members have a smaller mean cosine are always kept, past the cap; `None` for no
            such gate.
        complement: What becomes of keys that are not kept. `"none"`: they are dropped. `"all"`: pooled tiles cover
            them, no key twice; these count towards the density, as one tile each. `"auto"`: per head what errs less,
            measured on 32 query rows.
        pooled_level: Coarsest level of the pooled tiles; level `l` pools runs of `2**l` tokens.
        rho: Weigh what is kept by its share of the true softmax mass, from the exact log-sum-exp of 4 rows of each
            query tile, and pooled tiles by the rest (Re-ttention's idea, `compensation.corrected_attention`).
        order: `"gilbert"`, `"raster"`, `"space_major"` or `"frame_gilbert"` for queries and keys alike; or keys by
            `"score"` (attention received, per head) and queries in Gilbert order; or `"auto"`: per head what errs
            least of these five on eight rows of 16 query tiles, settled once per run and layer, or given by a plan.
    """

    method: ClassVar[str] = "adaptive"
    order_names: ClassVar[tuple[str, ...]] = HEAD_ORDER_NAMES

    top_p: float = 0.9
    min_density: float = 0.05
    max_density: float = 0.3
    density: float | None = None
    estimator: adaptive.EstimatorName = "mean"
    samples: int = 4
    stride: int = 8
    min_similarity: float | None = None
    complement: Complement = "none"
    pooled_level: int = 5
    rho: bool = False

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
        check_choice("complement", self.complement, get_args(Complement))
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

    @property
    def pools_tiles(self) -> bool:
        """As `complement` says."""
        return self.complement != "none"

    @property
    def corrects_mass(self) -> bool:
        """As `rho` says."""
        return self.rho

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose tiles for keys in the order of the queries; see `selectors.adaptive.select`."""
        shares_order = torch.ones(query.shape[1], dtype=torch.bool, device=query.device)
        return self.select_reordered(query, key, value, grid, shares_order)

    def candidates(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        runs: torch.Tensor | None = None,
    ) -> list[BlockMask]:
        """One mask, or with `complement="auto"` that without and that with pooled tiles."""
        levels = {"none": (None,), "all": (self.pooled_level,), "auto": (None, self.pooled_level)}[self.complement]
        return [self._mask(query, key, grid, shares_order, level, runs) for level in levels]

    def select_reordered(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
    ) -> BlockMask:
        """Choose tiles for queries and keys in any order; between two candidates by 32 query rows."""
        masks = self.candidates(query, key, value, grid, shares_order)
        if len(masks) == 1:
            return masks[0]
        rows = sample_exactly(query, key, value, masks[0].q_layout)
        dropping, pooling = masks
        pooled_error = rows.error(key, value, pooling, first_order=self.first_order)
        pools = pooled_error < rows.error(key, value, dropping)
        # The numbers of level-0 tiles are the same in both layouts.
        slots = max(pooling.indices.shape[3], dropping.indices.shape[3])
        pooled, fine = (F.pad(mask.indices, (0, slots - mask.indices.shape[3])) for mask in (pooling, dropping))
        return BlockMask(
            torch.where(pools[..., None, None], pooled, fine),
            torch.where(pools[..., None], pooling.counts, dropping.counts),
            pooling.q_layout,
            pooling.kv_layout,
        )

    def _mask(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        level: int | None,
        runs: torch.Tensor | None,
    ) -> BlockMask:
        kv_layout = TileLayout(grid.key_segments, self.kv_tile)
        low, high = (self.min_density, self.max_density) if self.density is None else (self.density, self.density)
        return adaptive.select(
            query,
            key,
            self.query_layout(query, grid, runs),
            kv_layout,
            top_p=self.top_p if self.density is None else None,
            min_tiles=max(1, round(low * kv_layout.num_tiles)),
            max_tiles=max(1, round(high * kv_layout.num_tiles)),
            estimator=self.estimator,
            samples=self.samples,
            stride=self.stride,
            min_similarity=self.min_similarity,
            pooled_level=level,
            shares_order=shares_order,
            runs=runs,
        )
