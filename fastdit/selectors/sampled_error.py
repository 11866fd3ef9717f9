"""The error that masks make, measured exactly on a few query rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention, stratified_rows


@dataclass(frozen=True)
class SampledRows:
    """Query rows and what dense attention gives them.

    Args:
        query: `[B, H, N * rows, D]`, `rows` rows of each of `N` query tiles.
        exact: Dense attention of them.
        tiles: The query tiles, int64 `[N]`.
        rows: Rows per tile.
    """

    query: torch.Tensor
    exact: torch.Tensor
    tiles: torch.Tensor
    rows: int

    def error(self, key: torch.Tensor, value: torch.Tensor, mask: BlockMask) -> torch.Tensor:
        """`|o - o*| / |o*|` of the sampled rows under a mask, mean over the rows: `[B, H]`.

        Args:
            key: `[B, H, Skv, D]` in the order that the mask counts in, which may differ from mask to mask.
            value: Likewise.
            mask: Over all query tiles.
        """
        part = BlockMask(
            mask.indices.index_select(2, self.tiles),
            mask.counts.index_select(2, self.tiles),
            TileLayout((self.query.shape[2],), self.rows),
            mask.kv_layout,
        )
        # Tiles of so few rows suit no compiled kernel.
        out = block_sparse_attention(self.query, key, value, part, implementation="torch").float()
        exact = self.exact.float()
        norm = exact.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        mean: torch.Tensor = ((out - exact).norm(dim=-1) / norm).mean(2)
        return mean


def sample_exactly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, q_layout: TileLayout, *, tiles: int = 16, rows: int = 2
) -> SampledRows:
    """Dense attention of a few rows; costs `tiles * rows / Sq` of dense attention.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]`, any order.
        value: In the order of `key`.
        q_layout: Query tiles; only those of the first segment (the video) are sampled, evenly spread.
        tiles: Query tiles to sample.
        rows: Rows of each.
    """
    available = q_layout.segment_tiles(0)[0]
    number = min(tiles, available)
    chosen = (2 * torch.arange(number, device=query.device) + 1) * available // (2 * number)
    picked = stratified_rows(q_layout, rows, query.device).view(-1, rows)[chosen].flatten()
    sampled = query.index_select(2, picked)
    return SampledRows(sampled, F.scaled_dot_product_attention(sampled, key, value), chosen, rows)
