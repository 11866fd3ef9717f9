"""Recall of a mask: the share of the true softmax mass that lies on tokens it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit_kernels import BlockMask, TileLayout, block_mass, block_sparse_attention, stratified_rows
from fastdit_kernels.block_mask import LEVEL_SHIFT
from fastdit_kernels.workspace import workspace_bytes

# Bytes of scores and keys worked on at once on a CPU.
CPU_WORKSPACE_BYTES = 32 << 20


def exact_recall(query: torch.Tensor, key: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    """Recall over all query rows; costs about two dense passes over the scores.

    A pooled tile counts as kept: its tokens are represented, if only by their mean.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order.
        mask: What is kept.

    Returns:
        `[B, H]`, mean over query rows, fp32 (fp64 for fp64 input).
    """
    q_layout = mask.q_layout
    kv_layout = TileLayout(mask.kv_layout.segments, mask.kv_tile)
    dense = BlockMask.full(q_layout, kv_layout, query.device)
    # The output is not needed: keys stand in for the values.
    _, lse = block_sparse_attention(query, key, key, dense, return_lse=True)
    return recall_given_lse(query, key, lse, mask)


def recall_given_lse(query: torch.Tensor, key: torch.Tensor, lse: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    """Recall over all query rows whose log-sum-exp over all keys is known; see `exact_recall`.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order.
        lse: Natural-log LSE of dense attention `[B, H, Sq]`.
        mask: What is kept.

    Returns:
        `[B, H]`, mean over query rows, fp32 (fp64 for fp64 input).
    """
    kv_layout = TileLayout(mask.kv_layout.segments, mask.kv_tile)
    mass = block_mass(query, key, lse, mask.q_layout, kv_layout, reduction="sum")
    return (mass * covered_tiles(mask)).sum((2, 3)) / mask.q_layout.length


def sampled_recall(query: torch.Tensor, key: torch.Tensor, mask: BlockMask, tiles: int, rows: int) -> torch.Tensor:
    """Recall over a few query rows against all keys, exact for these rows; only tiles of level 0 count as kept.

    A mask that covers everything by pooled tiles grows stale when the mass moves away from its fine ones. Costs one
    product of the rows and the keys: `tiles * rows / Sq` of dense attention, or less.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order.
        mask: What is kept.
        tiles: Query tiles to sample, from the middle of equal parts of the first segment (the video); text rows keep
            everything.
        rows: Rows to sample of each, from the middle of equal parts of the tile.

    Returns:
        `[B, H]`, mean over the sampled rows, fp32 (fp64 for fp64 input).
    """
    return sample_mass(query, key, mask.q_layout, mask.kv_layout, tiles, rows).recall(mask)


@dataclass(frozen=True, eq=False)
class SampledMass:
    """Where the softmax mass of a few query rows lies.

    Args:
        mass: Summed over the rows of each query tile, fp32 or fp64 `[B * H, N, NK]`, `NK` key tiles of level 0.
        tiles: The query tiles, int64 `[N]`.
        rows: Rows of each.
        shape: Batch entries and heads.
    """

    mass: torch.Tensor
    tiles: torch.Tensor
    rows: int
    shape: tuple[int, int]

    def recall(self, mask: BlockMask) -> torch.Tensor:
        """Share of the mass on tiles of level 0 that a mask keeps, mean over the rows, `[B, H]`."""
        tile, real = _fine_tiles(mask, self.tiles, *self.shape)
        kept = (self.mass.gather(2, tile) * real).sum((1, 2))
        return kept.view(self.shape) / (len(self.tiles) * self.rows)


def sample_mass(
    query: torch.Tensor, key: torch.Tensor, q_layout: TileLayout, kv_layout: TileLayout, tiles: int, rows: int
) -> SampledMass:
    """The mass that `sampled_recall` looks at, for masks of these layouts; levels above 0 do not count.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order.
        q_layout: Query tiles.
        kv_layout: Key tiles.
        tiles: Query tiles to sample.
        rows: Rows to sample of each.
    """
    chosen, sampled = spread_rows(q_layout, tiles, rows, query.device)
    batch, heads, length, dim = key.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    picked = (query.index_select(2, sampled).to(wide) * dim**-0.5).flatten(0, 1)
    keys = key.flatten(0, 1)
    step = max(1, workspace_bytes(query.device, CPU_WORKSPACE_BYTES) // (length * (len(sampled) + dim) * wide.itemsize))
    found = []
    for first in range(0, batch * heads, step):
        some = slice(first, first + step)
        weights = (picked[some] @ keys[some].to(wide).mT).softmax(2)
        found.append(tile_sums(weights, kv_layout).unflatten(1, (-1, rows)).sum(2))
    return SampledMass(torch.cat(found), chosen, rows, (batch, heads))


def _fine_tiles(mask: BlockMask, rows: torch.Tensor, batch: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries of some query tiles `[B * H, N, K]`: their tiles, and which of them are real and of level 0."""
    listed, counts = mask.indices.index_select(2, rows), mask.counts.index_select(2, rows)
    slots = torch.arange(listed.shape[3], device=listed.device)
    real = (slots < counts.unsqueeze(3)) & (listed >> LEVEL_SHIFT == 0)
    tile = torch.where(real, listed, 0).long()
    return tuple(x.expand(batch, heads, -1, -1).flatten(0, 1) for x in (tile, real))  # type: ignore[return-value]


def tile_sums(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """Sums over the keys of each level-0 tile: `[..., Skv]` to `[..., NK]`."""
    parts = []
    for part, tiles in zip(x.split(layout.segments, -1), layout.segment_tiles(0), strict=True):
        filled = F.pad(part, (0, tiles * layout.tile - part.shape[-1]))
        parts.append(filled.unflatten(-1, (tiles, layout.tile)).sum(-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def spread_rows(q_layout: TileLayout, tiles: int, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Query tiles from the middle of equal parts of the first segment (the video), and `rows` rows of each.

    Returns:
        Numbers of the tiles, at most `tiles`, int64 `[N]`; and of the rows, int64 `[N * rows]`.
    """
    available = q_layout.segment_tiles(0)[0]
    number = min(tiles, available)
    chosen = (2 * torch.arange(number, device=device) + 1) * available // (2 * number)
    return chosen, stratified_rows(q_layout, rows, device).view(-1, rows)[chosen].flatten()


def mask_of_tiles(mask: BlockMask, tiles: torch.Tensor, rows: int) -> BlockMask:
    """What the query tiles `[N]` keep, as the mask of `rows` rows of each."""
    return BlockMask(
        mask.indices.index_select(2, tiles),
        mask.counts.index_select(2, tiles),
        TileLayout((len(tiles) * rows,), rows),
        mask.kv_layout,
    )


def covered_tiles(mask: BlockMask) -> torch.Tensor:
    """Level-0 key tiles whose tokens a query tile represents at any level.

    Exact, because a tile of level `l` covers `2**l` tiles of level 0 from a boundary on.

    Returns:
        bool `[B, H, NQ, NK]`.
    """
    keep, layout = mask.to_dense(), mask.kv_layout
    if layout.num_levels == 1:
        return keep
    columns = []
    for segment, tiles in enumerate(layout.segment_tiles(0)):
        covered = keep.new_zeros((*keep.shape[:3], tiles))
        for level in range(layout.num_levels):
            counts = layout.segment_tiles(level)
            first = layout.level_offset(level) + sum(counts[:segment])
            part = keep[..., first : first + counts[segment]]
            covered |= part.repeat_interleave(1 << level, dim=-1)[..., :tiles]
        columns.append(covered)
    return torch.cat(columns, -1)
