"""Fast implementation in plain PyTorch: gather the listed K/V tiles of similar rows, then fused dense attention.

bf16 goes through the fused attention as well, never through `bmm`, which is some 16 times slower than fp32 on CPUs
without bf16 matrix units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastdit_kernels.tiles import wide_dtype

# Bytes of gathered K and V worked on at once: small enough to stay near the cache, large enough to keep SDPA busy.
WORKSPACE_BYTES = 4 << 20
# Rows share a call while the shorter ones waste at most this share of their padded keys.
MAX_PADDING = 0.12


def bucket_rows(counts: list[int], row_bytes: int) -> Iterator[list[int]]:
    """Group rows of similar length, longest first.

    Args:
        counts: Entries of each row.
        row_bytes: Bytes gathered per entry.

    Yields:
        Row numbers of one call, its longest row first. Rows without entries are left out.
    """
    order = sorted((row for row, count in enumerate(counts) if count > 0), key=lambda row: -counts[row])
    start = 0
    while start < len(order):
        longest = counts[order[start]]
        limit = start + max(1, WORKSPACE_BYTES // (longest * row_bytes))
        shortest = longest - int(MAX_PADDING * longest)
        end = start
        while end < min(limit, len(order)) and counts[order[end]] >= shortest:
            end += 1
        yield order[start:end]
        start = end


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_members: torch.Tensor | None,
    indices: torch.Tensor,
    counts: torch.Tensor,
    q_tile: int,
    kv_tile: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same contract as the reference, except that the output has the dtype of `query`.

    `row_members=None` says that every row is one real token, which saves the bias.
    """
    batch, heads, _, dim = query.shape
    tiles = key.shape[2] // kv_tile
    q_tiles = query.reshape(-1, q_tile, dim)
    k_tiles, v_tiles = key.reshape(-1, kv_tile, dim), value.reshape(-1, kv_tile, dim)
    # Entries become rows of the flattened [B * H * T] tile list.
    base = (torch.arange(batch * heads, device=query.device) * tiles).view(batch, heads, 1, 1)
    flat = (indices.expand(batch, heads, -1, -1) + base).reshape(len(q_tiles), -1)
    lengths = counts.expand(batch, heads, -1).reshape(-1)
    out = torch.empty_like(q_tiles)
    lse = q_tiles.new_empty(q_tiles.shape[:2], dtype=wide_dtype(query.dtype))
    # Only rows without entries: zeroing everything is a pass over memory that is written anyway.
    empty = (lengths == 0).nonzero().squeeze(1)
    out.index_fill_(0, empty, 0.0)
    lse.index_fill_(0, empty, -math.inf)
    bias = None if row_members is None else row_members.to(wide_dtype(query.dtype)).log().view(-1, kv_tile)
    workspace = _Workspace(kv_tile, k_tiles)
    for rows in bucket_rows(lengths.tolist(), 2 * kv_tile * dim * key.element_size()):
        picked = torch.tensor(rows, device=query.device)
        used = lengths[picked]
        width = int(used[0])
        entries = flat[picked, :width]
        listed = torch.arange(width, device=query.device) < used.unsqueeze(1)
        entries = torch.where(listed, entries, 0)
        mask = _key_bias(bias, entries, listed, tiles, kv_tile, query)
        shape = (len(rows), 1, width * kv_tile, dim)
        keys, values = workspace.gather(k_tiles, v_tiles, entries.flatten(), shape)
        tile_out, tile_lse = _dense(q_tiles.index_select(0, picked).unsqueeze(1), keys, values, mask, scale)
        out.index_copy_(0, picked, tile_out.squeeze(1))
        lse.index_copy_(0, picked, tile_lse.squeeze(1))
    return out.view(query.shape), lse.view(query.shape[:3])


class _Workspace:
    """Two buffers reused by every gather: fresh memory would cost page faults each time."""

    def __init__(self, kv_tile: int, like: torch.Tensor) -> None:
        self._kv_tile = kv_tile
        self._keys, self._values = like.new_empty(0), like.new_empty(0)

    def gather(
        self, k_tiles: torch.Tensor, v_tiles: torch.Tensor, entries: torch.Tensor, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = len(entries) * self._kv_tile * shape[-1]
        if self._keys.numel() < size:
            self._keys, self._values = self._keys.new_empty(size), self._values.new_empty(size)
        parts = []
        for source, buffer in ((k_tiles, self._keys), (v_tiles, self._values)):
            target = buffer[:size].view(len(entries), self._kv_tile, shape[-1])
            torch.index_select(source, 0, entries, out=target)
            parts.append(target.view(shape))
        return parts[0], parts[1]


def _key_bias(
    bias: torch.Tensor | None,
    entries: torch.Tensor,
    listed: torch.Tensor,
    tiles: int,
    kv_tile: int,
    query: torch.Tensor,
) -> torch.Tensor | None:
    """Additive key bias `[R, 1, 1, width * kv_tile]`: ln of members, -inf on padding; `None` if all zero."""
    complete = bool(listed.all())
    if bias is None:
        if complete:
            return None
        rows = torch.zeros((*entries.shape, kv_tile), dtype=wide_dtype(query.dtype), device=query.device)
    else:
        rows = bias[entries % tiles]
        # Rows that list no ragged and no pooled tile need no bias, and attention without one is faster.
        if complete and not bool(rows.any()):
            return None
    return rows.masked_fill(~listed.unsqueeze(-1), -math.inf).flatten(1)[:, None, None, :]


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention of a batch of tiles with its LSE: `[R, 1, M, D]` and `[R, 1, M]`."""
    if q.device.type == "cpu":
        # The operator behind F.scaled_dot_product_attention on CPU; called directly because it also gives the LSE.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=scale
        )
        return out, lse
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype), scale=scale)
    wide = wide_dtype(q.dtype)
    scores = scale * (q.to(wide) @ k.to(wide).mT)
    return out, (scores if mask is None else scores + mask.to(wide)).logsumexp(-1)
