"""Keys and values of some heads, all or sampled, as the statistics of the pyramid read them."""

from __future__ import annotations

import torch

from fastdit_kernels import TileLayout, stratified_rows
from fastdit_kernels.node_keys import PyramidKeys, all_keys, pair_means, project_values, video_values


def pyramid_keys(key: torch.Tensor, value: torch.Tensor, layout: TileLayout, kv_samples: int | None) -> PyramidKeys:
    """Prepare keys and values of some heads; the first segment is the video.

    Args:
        key: `[G, S, D]` in tile order.
        value: Likewise.
        layout: Tiles and levels of the keys.
        kv_samples: Tokens seen of each level-0 tile; `None` for all.
    """
    projected = project_values(value)
    if kv_samples is None:
        return all_keys(key, projected, layout)
    wide = projected.dtype
    video = TileLayout(layout.segments[:1], layout.tile, layout.num_levels)
    tiles = video.num_tiles
    picked = stratified_rows(TileLayout(video.segments, video.tile), kv_samples, key.device)
    weight = video.tile_rows(key.device)[:tiles].to(wide) / kv_samples
    fine_value = projected[:, picked].unflatten(1, (tiles, -1)) * weight.view(-1, 1, 1)
    pooled_key = text_key = text_value = None
    if video.num_levels > 1:
        pooled_key = pair_means(key[:, : video.length].to(wide), video, 0)
    if layout.length > video.length:
        text_key, text_value = key[:, video.length :].to(wide), projected[:, video.length :]
    pooled_value = video_values(projected, video)[1]
    return PyramidKeys(video, key[:, picked].to(wide), fine_value, pooled_key, pooled_value, text_key, text_value)
