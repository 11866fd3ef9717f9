"""Keys and values as the statistics of the pyramid read them: fine, pooled, and text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import wide_dtype

# Norms of value vectors are taken after a random projection to this many dimensions: with the mass they make 16.
VALUE_DIMS = 15
# Bytes of values in the wide dtype at once, before they are projected.
WIDE_BYTES = 256 << 20


@dataclass(frozen=True)
class PyramidKeys:
    """What sampled rows are compared with.

    Args:
        layout: Tiles and levels of the video alone.
        fine_key: Tokens of the video, all or a sample of each tile, `[G, n * r, D]`; padding repeats the last token.
        fine_value: Their projected values and a one that sums up the mass, times the tokens each stands for (0 on
            padding), `[G, n, r, P + 1]`.
        pooled_key: Means of pairs of tokens, `[G, rows of level 1, D]`; `None` if all tokens are in `fine_key`.
        pooled_value: Of level 1 and above, one after the other, sums of `fine_value` over the members of a row,
            `[G, m, tile, P + 1]` with `m` tiles in all.
        text_key: Text tokens, which every row sees, `[G, T, D]`; `None` without text.
        text_value: Theirs, `[G, T, P + 1]`.
    """

    layout: TileLayout
    fine_key: torch.Tensor
    fine_value: torch.Tensor
    pooled_key: torch.Tensor | None
    pooled_value: torch.Tensor
    text_key: torch.Tensor | None
    text_value: torch.Tensor | None

    def of_heads(self, heads: slice) -> PyramidKeys:
        """Those of some heads."""
        return replace(
            self,
            fine_key=self.fine_key[heads],
            fine_value=self.fine_value[heads],
            pooled_key=None if self.pooled_key is None else self.pooled_key[heads],
            pooled_value=self.pooled_value[heads],
            text_key=None if self.text_key is None else self.text_key[heads],
            text_value=None if self.text_value is None else self.text_value[heads],
        )


def project_values(value: torch.Tensor) -> torch.Tensor:
    """Values projected to at most `VALUE_DIMS` dimensions, and a one that sums up the mass.

    Args:
        value: `[G, S, D]`.

    Returns:
        `[G, S, P + 1]`, fp32, or fp64 for fp64 input.
    """
    wide = wide_dtype(value.dtype)
    projection = _projection(value.shape[2], wide, value.device)
    projected = value.new_ones(len(value), value.shape[1], projection.shape[1] + 1, dtype=wide)
    step = max(1, WIDE_BYTES // max(1, value.shape[1] * value.shape[2] * wide.itemsize))
    for first in range(0, len(value), step):
        heads = slice(first, first + step)
        projected[heads, :, :-1] = value[heads].to(wide) @ projection
    return projected


def all_keys(key: torch.Tensor, projected: torch.Tensor, layout: TileLayout) -> PyramidKeys:
    """All keys of some heads as the statistics read them; the first segment is the video.

    Args:
        key: `[G, S, D]` in tile order.
        projected: Values from `project_values`.
        layout: Tiles and levels of the keys.
    """
    video = TileLayout(layout.segments[:1], layout.tile, layout.num_levels)
    padding = video.num_tiles * video.tile - video.length
    wide = projected.dtype
    values, pooled_value = video_values(projected, video)
    fine_key = key[:, : video.length].to(wide)
    if padding:
        fine_key = torch.cat([fine_key, fine_key[:, -1:].expand(-1, padding, -1)], 1)
    text_key = text_value = None
    if layout.length > video.length:
        text_key, text_value = key[:, video.length :].to(wide), projected[:, video.length :]
    fine_value = values.unflatten(1, (video.num_tiles, -1))
    return PyramidKeys(video, fine_key, fine_value, None, pooled_value, text_key, text_value)


def video_values(projected: torch.Tensor, video: TileLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of the video in whole tiles `[G, n * tile, P + 1]`, and `PyramidKeys.pooled_value`."""
    padding = video.num_tiles * video.tile - video.length
    values = projected[:, : video.length]
    if padding:
        values = F.pad(values, (0, 0, 0, padding))
    return values, _pooled_values(values, video)


def pair_means(x: torch.Tensor, layout: TileLayout, level: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of the next level: means over twice as many tokens.

    Args:
        x: `[G, rows, C]`, means over runs of `2**level` tokens; rows of padding may follow.
        layout: Tiles of one segment.
        level: Level of `x`.
        out: Where to write the result; `None` for new memory.

    Returns:
        `[G, rows, C]`, filled up to whole tiles with the last mean.
    """
    rows, run = layout.segment_rows(level)[0], 1 << level
    filled, pairs = -(-rows // 2), rows // 2
    means = x.new_empty(x.shape[0], layout.level_tiles(level + 1) * layout.tile, x.shape[2]) if out is None else out
    torch.lerp(x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2], 0.5, out=means[:, :pairs])
    if filled > pairs:
        means[:, pairs] = x[:, rows - 1]
    else:
        last = layout.length - (rows - 1) * run
        means[:, pairs - 1] = torch.lerp(x[:, rows - 2], x[:, rows - 1], last / (run + last))
    means[:, filled:] = means[:, filled - 1 : filled]
    return means


def _projection(dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random signs `[dim, VALUE_DIMS]` that keep squared norms on average; the identity for short vectors."""
    if dim <= VALUE_DIMS:
        return torch.eye(dim, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    signs = torch.randint(0, 2, (dim, VALUE_DIMS), generator=generator, device=device) * 2 - 1
    return signs.to(dtype) / math.sqrt(VALUE_DIMS)


def pair_sums(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write sums of neighbours `[G, n, ...]` to `out` `[G, ceil(n / 2), ...]`; an odd last one stays alone."""
    pairs = x.shape[1] // 2
    torch.add(x[:, 0 : 2 * pairs : 2], x[:, 1::2], out=out[:, :pairs])
    if x.shape[1] % 2:
        out[:, pairs] = x[:, -1]


def _pooled_values(values: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """Sums over the members of every row of level 1 and above, from `[G, n * tile, P + 1]`."""
    rows = [layout.level_tiles(level) * layout.tile for level in range(1, layout.num_levels)]
    pooled = values.new_zeros(len(values), sum(rows), values.shape[2])
    for part in pooled.split(rows, 1) if rows else ():
        pair_sums(values, part[:, : -(-values.shape[1] // 2)])
        values = part
    tiled: torch.Tensor = pooled.unflatten(1, (-1, layout.tile))
    return tiled
