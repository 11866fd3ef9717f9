"""The oracle: block-sparse attention written as its definition, one query tile at a time."""

from __future__ import annotations

import math

import torch

from fastdit_kernels.tiles import wide_dtype


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_members: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`softmax(scale q k^T + ln n) v` over the listed tiles, `n` the tokens a key row stands for.

    Args:
        query: Query buffer `[B, H, NQ * q_tile, D]`.
        key: Key buffer `[B, H, T * kv_tile, D]`, all levels.
        value: Value buffer, like `key`.
        row_members: Tokens behind each key row, int64 `[T * kv_tile]`, 0 for padding.
        indices: Tile of each entry without its level bits, `[B, H, NQ, K]`.
        counts: Entries of each row, `[B, H, NQ]`.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        scale: Factor on the scores.

    Returns:
        Output `[B, H, NQ * q_tile, D]` and natural-log LSE `[B, H, NQ * q_tile]`, both in fp32, or fp64 for fp64
        input. Rows without any key give 0 and -inf.
    """
    wide = wide_dtype(query.dtype)
    out = torch.zeros(query.shape, dtype=wide, device=query.device)
    lse = torch.full(query.shape[:3], -math.inf, dtype=wide, device=query.device)
    bias = row_members.to(wide).log()
    lanes = torch.arange(kv_tile, device=query.device)
    for batch, head, tile in torch.cartesian_prod(*(torch.arange(size) for size in counts.shape)).tolist():
        entries = indices[batch, head, tile, : int(counts[batch, head, tile])].long()
        rows = (entries.unsqueeze(1) * kv_tile + lanes).flatten()
        rows = rows[row_members[rows] > 0]
        if rows.numel() == 0:
            continue
        span = slice(tile * q_tile, (tile + 1) * q_tile)
        q, k, v = query[batch, head, span].to(wide), key[batch, head, rows].to(wide), value[batch, head, rows].to(wide)
        scores = scale * (q @ k.T) + bias[rows]
        lse[batch, head, span] = scores.logsumexp(-1)
        out[batch, head, span] = (scores - lse[batch, head, span].unsqueeze(-1)).exp() @ v
    return out, lse
