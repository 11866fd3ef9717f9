"""Keys and values as the statistics of the pyramid read them: fine, pooled, and text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fastdit_kernels import TileLayout, stratified_rows

# Norms of value vectors are taken after a random projection to this many dimensions: with the mass they make 16.
VALUE_DIMS = 15


@dataclass(frozen=True)
class PyramidKeys:
    """What sampled rows are compared with.

    Args:
        layout: Tiles and levels of the video alone.
        fine_key: Tokens of the video, all or a sample of each tile, `[G, n * r, D]`; padding repeats the last token.
        fine_value: Their projected values and a one that sums up the mass, times the tokens each stands for (0 on
            padding), `[G, n, r, P + 1]`.
        pooled_key: Means of pairs of tokens, `[G, rows of level 1, D]`; `None` if all tokens are in `fine_key`.
        pooled_value: For level 1 and above, sums of `fine_value` over the members of a row, `[G, n_l, tile, P + 1]`.
        text_key: Text tokens, which every row sees, `[G, T, D]`; `None` without text.
        text_value: Theirs, `[G, T, P + 1]`.
    """

    layout: TileLayout
    fine_key: torch.Tensor
    fine_value: torch.Tensor
    pooled_key: torch.Tensor | None
    pooled_value: tuple[torch.Tensor, ...]
    text_key: torch.Tensor | None
    text_value: torch.Tensor | None

    def of_heads(self, heads: slice) -> PyramidKeys:
        """Those of some heads."""
        return replace(
            self,
            fine_key=self.fine_key[heads],
            fine_value=self.fine_value[heads],
            pooled_key=None if self.pooled_key is None else self.pooled_key[heads],
            pooled_value=tuple(value[heads] for value in self.pooled_value),
            text_key=None if self.text_key is None else self.text_key[heads],
            text_value=None if self.text_value is None else self.text_value[heads],
        )


def pyramid_keys(key: torch.Tensor, value: torch.Tensor, layout: TileLayout, kv_samples: int | None) -> PyramidKeys:
    """Prepare keys and values of some heads; the first segment is the video.

    Args:
        key: `[G, S, D]` in tile order.
        value: Likewise.
        layout: Tiles and levels of the keys.
        kv_samples: Tokens seen of each level-0 tile; `None` for all.
    """
    wide = torch.promote_types(key.dtype, torch.float32)
    video = TileLayout(layout.segments[:1], layout.tile, layout.num_levels)
    tiles, padding = video.num_tiles, video.num_tiles * video.tile - video.length
    projected = F.pad(value.to(wide) @ _projection(value.shape[2], wide, value.device), (0, 1), value=1.0)
    values = F.pad(projected[:, : video.length], (0, 0, 0, padding))
    pooled_key = None
    if kv_samples is None:
        fine_key = key[:, : video.length].to(wide)
        if padding:
            fine_key = torch.cat([fine_key, fine_key[:, -1:].expand(-1, padding, -1)], 1)
        fine_value = values.unflatten(1, (tiles, -1))
    else:
        picked = stratified_rows(TileLayout(video.segments, video.tile), kv_samples, key.device)
        weight = video.tile_rows(key.device)[:tiles].to(wide) / kv_samples
        fine_key = key[:, picked].to(wide)
        fine_value = projected[:, picked].unflatten(1, (tiles, -1)) * weight.view(-1, 1, 1)
        if video.num_levels > 1:
            pooled_key = pair_means(key[:, : video.length].to(wide), video, 0)
    text_key = text_value = None
    if layout.length > video.length:
        text_key, text_value = key[:, video.length :].to(wide), projected[:, video.length :]
    pooled_value = _pooled_values(values, video)
    return PyramidKeys(video, fine_key, fine_value, pooled_key, pooled_value, text_key, text_value)


def pair_means(x: torch.Tensor, layout: TileLayout, level: int) -> torch.Tensor:
    """Rows of the next level: means over twice as many tokens.

    Args:
        x: `[G, rows, C]`, means over runs of `2**level` tokens; rows of padding may follow.
        layout: Tiles of one segment.
        level: Level of `x`.

    Returns:
        `[G, rows, C]`, filled up to whole tiles with the last mean.
    """
    rows, run = layout.segment_rows(level)[0], 1 << level
    filled, pairs = -(-rows // 2), rows // 2
    means = x.new_empty(x.shape[0], layout.level_tiles(level + 1) * layout.tile, x.shape[2])
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


def _pooled_values(values: torch.Tensor, layout: TileLayout) -> tuple[torch.Tensor, ...]:
    """Sums over the members of every row of level 1 and above, from `[G, n * tile, P + 1]`."""
    pooled = []
    for level in range(1, layout.num_levels):
        values = F.pad(values, (0, 0, 0, values.shape[1] % 2))
        values = values[:, 0::2] + values[:, 1::2]
        tiles = layout.level_tiles(level)
        values = F.pad(values, (0, 0, 0, tiles * layout.tile - values.shape[1]))
        pooled.append(values.unflatten(1, (tiles, -1)))
    return tuple(pooled)
