"""The error that masks make, measured exactly on a few query rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit.recall import mask_of_tiles, spread_rows
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention


@dataclass(frozen=True)
class SampledRows:
    """Query rows and what dense attention gives them.

    Args:
        query: `[B, H, N * rows, D]`, `rows` rows of each of `N` query tiles.
        exact: Dense attention of them.
        tiles: The query tiles, int64 `[N]`.
        rows: Rows per tile.
        scale: Factor on the scores, default `1 / sqrt(D)`.
    """

    query: torch.Tensor
    exact: torch.Tensor
    tiles: torch.Tensor
    rows: int
    scale: float | None = None

    def error(self, key: torch.Tensor, value: torch.Tensor, mask: BlockMask) -> torch.Tensor:
        """`|o - o*| / |o*|` of the sampled rows under a mask, mean over the rows: `[B, H]`.

        Args:
            key: `[B, H, Skv, D]` in the order that the mask counts in, which may differ from mask to mask.
            value: Likewise.
            mask: Over all query tiles.
        """
        part = mask_of_tiles(mask, self.tiles, self.rows)
        # Tiles of so few rows suit no compiled kernel.
        out = block_sparse_attention(self.query, key, value, part, scale=self.scale, implementation="torch").float()
        exact = self.exact.float()
        norm = exact.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        mean: torch.Tensor = ((out - exact).norm(dim=-1) / norm).mean(2)
        return mean


def sample_exactly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    q_layout: TileLayout,
    *,
    tiles: int = 16,
    rows: int = 2,
    scale: float | None = None,
) -> SampledRows:
    """Dense attention of a few rows; costs `tiles * rows / Sq` of dense attention.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]`, any order.
        value: In the order of `key`.
        q_layout: Query tiles; only those of the first segment (the video) are sampled, evenly spread.
        tiles: Query tiles to sample.
        rows: Rows of each.
        scale: Factor on the scores, default `1 / sqrt(D)`.
    """
    chosen, picked = spread_rows(q_layout, tiles, rows, query.device)
    sampled = query.index_select(2, picked)
    exact = F.scaled_dot_product_attention(sampled, key, value, scale=scale)
    return SampledRows(sampled, exact, chosen, rows, scale)
