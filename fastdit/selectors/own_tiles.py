"""Tile pairs that every selector keeps."""

from __future__ import annotations

import torch

from fastdit_kernels import TileLayout


def own_tiles(q_layout: TileLayout, kv_layout: TileLayout, device: torch.device) -> torch.Tensor:
    """Key tiles that every row must keep: those sharing a token with the query tile, and all of the text.

    Both layouts have the same segments: video, then text if any. Text queries keep everything.

    Returns:
        bool `[NQ, NK]`.
    """
    spans = []
    for layout in (q_layout, kv_layout):
        tile = torch.arange(layout.segment_tiles(0)[0], device=device)
        spans.append((tile * layout.tile, (tile + 1) * layout.tile))
    (q_first, q_end), (k_first, k_end) = spans
    keep = torch.ones(q_layout.num_tiles, kv_layout.num_tiles, dtype=torch.bool, device=device)
    keep[: len(q_first), : len(k_first)] = (q_first[:, None] < k_end) & (k_first < q_end[:, None])
    return keep
