"""Keys sorted by the attention they receive: gathers hot keys that lie scattered over the video."""

from __future__ import annotations

import torch

from fastdit.attention_profile import sample_rows
from fastdit.grid import VideoGrid

# Bytes of scores worked on at once.
WORKSPACE_BYTES = 32 << 20


def score_order(query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, samples: int = 64) -> torch.Tensor:
    """Video tokens by falling mean attention from evenly spaced video queries, then text in its own order.

    Args:
        query: `[B, H, S, D]` in the model's token order, after norms and RoPE.
        key: Likewise.
        grid: Geometry, `S = grid.length`.
        samples: Queries that are asked, at most the tokens of the video.

    Returns:
        int64 `[H, S]`, a permutation of the model's sequence per head; of equal keys the earlier comes first.
    """
    video = slice(grid.video_start, grid.video_start + grid.video_length)
    wide = torch.promote_types(query.dtype, torch.float32)
    picked = sample_rows(grid.video_length, samples).to(query.device) + grid.video_start
    rows, keys = query.index_select(2, picked), key[:, :, video]
    batch, heads, count, dim = rows.shape
    step = max(1, WORKSPACE_BYTES // (batch * count * grid.video_length * wide.itemsize))
    received = []
    for first in range(0, heads, step):
        some = slice(first, first + step)
        scores = rows[:, some].to(wide) @ keys[:, some].to(wide).mT * dim**-0.5
        received.append(scores.softmax(3).mean((0, 2)))
    ranked = torch.sort(torch.cat(received), dim=1, descending=True, stable=True).indices + grid.video_start
    text = torch.arange(grid.text_length, device=query.device) + grid.text_start
    return torch.cat([ranked, text.expand(heads, -1)], 1)
