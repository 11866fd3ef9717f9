"""Moving tokens between their own order and tile buffers: gather, scatter, padding and pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.tile_layout import TileLayout


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of `dtype` are taken in: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gather_tokens(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Reorder tokens: `out[:, :, i] = x[:, :, order[i]]`.

    Args:
        x: `[B, H, S, D]`, any strides.
        order: int64 `[S]` for all heads, or `[H, S]` for an order per head.

    Returns:
        `[B, H, S, D]`, contiguous.
    """
    if order.ndim == 1:
        return x.index_select(2, order)
    return x.gather(2, order[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[3]))


def scatter_tokens(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Undo `gather_tokens`: `out[:, :, order[i]] = x[:, :, i]`.

    Args:
        x: `[B, H, S, D]` in gathered order.
        order: The permutation that was gathered with, `[S]` or `[H, S]`.

    Returns:
        `[B, H, S, D]`, contiguous.
    """
    return gather_tokens(x, invert_order(order))


def invert_order(order: torch.Tensor) -> torch.Tensor:
    """The inverse permutation, row-wise."""
    positions = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, positions)


def pad_to_tiles(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """Put each segment on a tile boundary, with zero rows in between (level 0 only).

    Args:
        x: `[B, H, S, D]` with `S = layout.length`.
        layout: Segments and tile size.

    Returns:
        `[B, H, layout.num_tiles * tile, D]`, contiguous; `x` itself if nothing is to be added.
    """
    if x.shape[2] != layout.length:
        raise InvalidInputError(f"{x.shape[2]} tokens given, the layout has {layout.length}")
    if layout.is_exact:
        return x.contiguous()
    parts = []
    for part, tiles in zip(x.split(layout.segments, dim=2), layout.segment_tiles(0), strict=True):
        parts.append(F.pad(part, (0, 0, 0, tiles * layout.tile - part.shape[2])))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).contiguous()


def unpad_from_tiles(x: torch.Tensor, layout: TileLayout, dim: int = 2) -> torch.Tensor:
    """Undo `pad_to_tiles` along `dim`."""
    if len(layout.segments) == 1:
        return x.narrow(dim, 0, layout.length)
    sizes = [tiles * layout.tile for tiles in layout.segment_tiles(0)]
    parts = x.split(sizes, dim)
    kept = [part.narrow(dim, 0, length) for part, length in zip(parts, layout.segments, strict=True)]
    return torch.cat(kept, dim)


def pool_pyramid(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """All levels of a sequence in one buffer: row `g` of level `l` is the mean of tokens `g 2^l ... (g+1) 2^l - 1`.

    Sums are taken in fp32 (fp64 for fp64 input); a ragged last run is divided by its true number of members.

    Args:
        x: `[B, H, S, D]` in tile order, `S = layout.length`.
        layout: Segments, tile size and number of levels.

    Returns:
        `[B, H, layout.total_tiles * tile, D]` in the dtype of `x`; padding rows are zero.
    """
    if layout.num_levels == 1:
        return pad_to_tiles(x, layout)
    sums = [part.to(wide_dtype(x.dtype)) for part in x.split(layout.segments, dim=2)]
    buffer = x.new_zeros(*x.shape[:2], layout.total_tiles * layout.tile, x.shape[3])
    start = 0
    for level in range(layout.num_levels):
        if level > 0:
            sums = [_pair_sums(part) for part in sums]
        for part, length, tiles in zip(sums, layout.segments, layout.segment_tiles(level), strict=True):
            rows = buffer[:, :, start : start + part.shape[2]]
            if level == 0:
                rows.copy_(part)
            else:
                first = torch.arange(part.shape[2], device=x.device) << level
                rows.copy_(part / (length - first).clamp(1, 1 << level).view(1, 1, -1, 1))
            start += tiles * layout.tile
    return buffer


def _pair_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums of neighbouring rows; an odd last one stays alone: dividing by true counts makes that exact."""
    pairs = x.shape[2] // 2
    sums = x[:, :, 0 : 2 * pairs : 2] + x[:, :, 1::2]
    return torch.cat([sums, x[:, :, -1:]], 2) if x.shape[2] % 2 else sums
