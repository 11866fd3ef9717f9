"""Recall of a mask: the share of the true softmax mass that lies on tokens it keeps."""

from __future__ import annotations

import torch

from fastdit_kernels import (
    BlockMask,
    TileLayout,
    block_mass,
    block_sparse_attention,
    sampled_mass,
    stratified_rows,
)


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

    A mask that covers everything by pooled tiles grows stale when the mass moves away from its fine ones.

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
    chosen, sampled = spread_rows(mask.q_layout, tiles, rows, query.device)
    kv_layout = TileLayout(mask.kv_layout.segments, mask.kv_tile)
    mass = sampled_mass(query.index_select(2, sampled), key, kv_layout, q_samples=rows)
    part = mask_of_tiles(mask, chosen, rows)
    return (mass * part.to_dense()[..., : mass.shape[3]]).sum(3).mean(2)


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
