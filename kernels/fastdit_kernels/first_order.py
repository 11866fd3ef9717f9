"""Pooled tiles to first order: what a group of tokens adds to the output follows the query, not its mean value alone.

Within a group `g` of tokens with scores `s_i = scale q . k_i`, softmax weighs values by `e^s_i`. Expanded around the
mean key,

    sum_i e^s_i v_i / sum_i e^s_i  =  v_g + scale C_g q + O(s^2),    C_g = mean_i (v_i - v_g) (k_i - k_g)^T

A pooled tile has the first term. The second one is added here with one `C` per (head, level), the mean over all groups
of the level, times the mass that they have in the pooled tiles of a query tile:

    out += scale sum_l u_l C_l q

Keys and values of one token come from the same features, so groups agree in how they covary: on trained heads the
one matrix per level takes up to a third off the error of an output. Nothing is fitted or kept from call to call.
"""

from __future__ import annotations

import torch

from fastdit_kernels.block_mask import LEVEL_SHIFT, TILE_BITS, BlockMask
from fastdit_kernels.mass import sum_mass
from fastdit_kernels.scores import stratified_rows
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import wide_dtype
from fastdit_kernels.workspace import workspace_bytes

# Bytes of matrices and of what they add held at once on a CPU.
CPU_WORKSPACE_BYTES = 16 << 20


def level_covariances(keys: torch.Tensor, values: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """`C_l = (1 / S) sum_i (k_i - k_g(i)) (v_i - v_g(i))^T`, the groups `g` those of level `l`, tokens of one segment.

    Summed from level to level: merging groups of `a` and `b` tokens adds `a b / (a + b)` times the product of the
    differences of their means, so nothing large cancels.

    Args:
        keys: `[B, H, T * tile, D]`, all levels.
        values: Likewise.
        layout: Of both; the first segment is taken, the others are never pooled.

    Returns:
        `[B, H, num_levels - 1, D, D]` for the levels from 1 on, keys first; fp32, or fp64 for fp64 input.
    """
    compute, length = _compute_dtype(keys), layout.segments[0]
    total = keys.new_zeros((*keys.shape[:2], keys.shape[3], values.shape[3]), dtype=wide_dtype(keys.dtype))
    found = []
    for level in range(layout.num_levels - 1):
        first, pairs = layout.level_offset(level) * layout.tile, layout.segment_rows(level)[0] // 2
        k, v = (
            x[:, :, first : first + 2 * pairs].unflatten(2, (pairs, 2)).to(compute).diff(dim=3).squeeze(3)
            for x in (keys, values)
        )
        run = 1 << level
        # All runs are whole but the last.
        right = (length - (2 * torch.arange(pairs, device=keys.device) + 1) * run).clamp(max=run).to(compute)
        weight = (run * right / (run + right) / length).unsqueeze(1)
        total = total + ((k * weight).mT @ v).to(total.dtype)
        found.append(total)
    return torch.stack(found, 2)


def level_masses(
    query: torch.Tensor,
    keys: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    *,
    rows: int,
    scale: float,
) -> torch.Tensor:
    """Softmax mass that groups of several tokens have in the pooled tiles of each level, mean over sampled rows.

    Args:
        query: `[B, H, NQ * q_tile, D]`.
        keys: `[B, H, T * kv_tile, D]`, all levels.
        lse: Of the attention over `mask`, `[B, H, NQ * q_tile]`.
        mask: Lists.
        rows: Query rows sampled of each tile; each costs as much as scores with all pooled keys.
        scale: Factor on the scores.

    Returns:
        `[B, H, NQ, num_levels - 1]` per query tile for the levels from 1 on, 0 where a level is not listed.
    """
    layout = mask.kv_layout
    picked = _buffer_rows(mask.q_layout, rows, query.device)
    first, wide = layout.level_offset(1), wide_dtype(query.dtype)
    members = layout.row_members(query.device)[first * layout.tile :]
    # A ragged last group of one token is that token: nothing in it covaries.
    bias = torch.where(members > 1, members, 0).to(wide).log()
    level = lse.index_select(2, picked)
    mass = sum_mass(
        query.index_select(2, picked),
        keys[:, :, first * layout.tile :],
        bias,
        torch.where(level == -torch.inf, torch.inf, level),
        rows,
        layout.tile,
        scale,
        "auto",
    )
    indices = mask.indices.expand(*query.shape[:2], -1, -1)
    pooled = torch.where(mask.is_listed, indices >> LEVEL_SHIFT, 0)
    place = torch.where(pooled > 0, (indices & TILE_BITS) - first, 0)
    listed = mass.gather(3, place.long()) / rows
    return torch.stack([torch.where(pooled == number, listed, 0).sum(3) for number in range(1, layout.num_levels)], 3)


def add_first_order(
    out: torch.Tensor,
    lse: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: BlockMask,
    *,
    rows: int,
    scale: float,
) -> torch.Tensor:
    """`out + scale sum_l u_l C_l q` for every query row, `u_l` the mass of its tile.

    Args:
        out: Attention over `mask`, `[B, H, NQ * q_tile, D]`; written to.
        lse: Its log-sum-exp, `[B, H, NQ * q_tile]`.
        query: Like `out`.
        keys: `[B, H, T * kv_tile, D]`, all levels.
        values: Likewise.
        mask: Lists.
        rows: Query rows of each tile that its masses are measured on.
        scale: Factor on the scores.

    Returns:
        `out`.
    """
    if mask.kv_layout.num_levels == 1:
        return out
    batch, heads, _, dim = query.shape
    tiles, compute = mask.q_layout.num_tiles, _compute_dtype(query)
    covariance = (level_covariances(keys, values, mask.kv_layout) * scale).to(compute)
    mass = level_masses(query, keys, lse, mask, rows=rows, scale=scale).to(compute)
    head_bytes = batch * tiles * dim * (dim + mask.q_tile) * compute.itemsize
    step = max(1, workspace_bytes(query.device, CPU_WORKSPACE_BYTES) // head_bytes)
    for first in range(0, heads, step):
        some = slice(first, first + step)
        matrix = (mass[:, some] @ covariance[:, some].flatten(3)).unflatten(3, (dim, -1))
        moved = query[:, some].unflatten(2, (tiles, mask.q_tile)).to(compute) @ matrix
        out[:, some] += moved.flatten(2, 3).to(out.dtype)
    return out


def _buffer_rows(layout: TileLayout, rows: int, device: torch.device) -> torch.Tensor:
    """`stratified_rows` as places in the padded buffer."""
    picked, places, first, start = stratified_rows(layout, rows, device), [], 0, 0
    for length, tiles in zip(layout.segments, layout.segment_tiles(0), strict=True):
        places.append(picked[first * rows : (first + tiles) * rows] + (first * layout.tile - start))
        first, start = first + tiles, start + length
    return torch.cat(places)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    """On a GPU half precision in the range of fp32, on a CPU, where products of it are slow, fp32."""
    if x.device.type == "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return wide_dtype(x.dtype)
    return torch.bfloat16
