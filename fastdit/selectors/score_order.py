"""Keys sorted by the attention they receive: gathers hot keys that lie scattered over the video."""

from __future__ import annotations

import torch

from fastdit.attention_profile import sample_rows
from fastdit.grid import VideoGrid
from fastdit.orders import kept_tokens
from fastdit_kernels.workspace import workspace_bytes

# Bytes of scores worked on at once on a CPU.
CPU_WORKSPACE_BYTES = 32 << 20


def score_order(query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, samples: int = 64) -> torch.Tensor:
    """Video tokens by falling mean attention from evenly spaced video queries, then what every query sees.

    Args:
        query: `[B, H, S, D]` in the model's token order, after norms and RoPE.
        key: Likewise.
        grid: Geometry, `S = grid.length`.
        samples: Queries that are asked, at most the tokens of the video.

    Returns:
        int64 `[H, S]`, a permutation of the model's sequence per head; of equal keys the earlier comes first.
    """
    ranked_from = grid.video_start + grid.kept_length
    video = slice(ranked_from, grid.video_start + grid.video_length)
    wide = torch.promote_types(query.dtype, torch.float32)
    picked = sample_rows(grid.video_length, samples, query.device) + grid.video_start
    rows, keys = query.index_select(2, picked), key[:, :, video]
    batch, heads, count, dim = rows.shape
    step = max(1, workspace_bytes(query.device, CPU_WORKSPACE_BYTES) // (batch * count * keys.shape[2] * wide.itemsize))
    received = []
    for first in range(0, heads, step):
        some = slice(first, first + step)
        scores = rows[:, some].to(wide) @ keys[:, some].to(wide).mT * dim**-0.5
        received.append(scores.softmax(3).mean((0, 2)))
    ranked = torch.sort(torch.cat(received), dim=1, descending=True, stable=True).indices + ranked_from
    return torch.cat([ranked, kept_tokens(grid, query.device).expand(heads, -1)], 1)
