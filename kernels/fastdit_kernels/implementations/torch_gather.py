"""Fast implementation in plain PyTorch: gather the listed K/V tiles of similar rows, then fused dense attention.

bf16 goes through the fused attention as well, never through `bmm`, which is some 16 times slower than fp32 on CPUs
without bf16 matrix units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from fastdit_kernels.merge import merge_parts
from fastdit_kernels.tiles import wide_dtype
from fastdit_kernels.workspace import workspace_bytes

# Bytes of gathered K and V that a thread works on at once. What fits into the second-level cache is read again at full
# speed: with 4 MiB the fused attention was 10 to 15 % slower (1 MiB cache, fp32).
CACHE_BYTES = 1 << 20
# Rows share a call while the shorter ones waste at most this share of their padded keys, which takes a bias.
MAX_PADDING = 0.12
# Rows of more than this share of the workspace are worth a call without padding.
LONG_ROW = 0.25


def bucket_rows(counts: Sequence[int], row_bytes: int, workspace: int) -> Iterator[range]:
    """Group rows of similar length.

    Args:
        counts: Entries of each row, falling.
        row_bytes: Bytes gathered per entry.
        workspace: Bytes gathered in a call, unless one row takes more.

    Yields:
        Places in `counts` of the rows of one call. Rows without entries are left out.
    """
    start, stop = 0, sum(count > 0 for count in counts)
    while start < stop:
        longest = counts[start]
        limit = min(stop, start + max(1, workspace // (longest * row_bytes)))
        padding = 0 if longest * row_bytes > LONG_ROW * workspace else int(MAX_PADDING * longest)
        end = start + 1
        while end < limit and counts[end] >= longest - padding:
            end += 1
        yield range(start, end)
        start = end


def _pieces(width: int, row_bytes: int, workspace: int) -> Iterator[tuple[int, int]]:
    """Ranges of the entries of a row: all at once unless they take more than twice the workspace."""
    number = 1 if width * row_bytes <= 2 * workspace else math.ceil(width * row_bytes / workspace)
    size = math.ceil(width / number)
    for start in range(0, width, size):
        yield start, min(width, start + size)


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
    room, row_bytes = workspace_bytes(query.device, CACHE_BYTES * torch.get_num_threads()), 2 * k_tiles[0].nbytes
    falling, order = lengths.sort(descending=True, stable=True)
    counted = falling.tolist()
    for rows in bucket_rows(counted, row_bytes, room):
        picked, width = order[rows.start : rows.stop], counted[rows.start]
        entries, listed = flat[picked, :width], None
        if counted[rows.stop - 1] < width:
            listed = torch.arange(width, device=query.device) < falling[rows.start : rows.stop].unsqueeze(1)
            entries = torch.where(listed, entries, 0)
        mask = _key_bias(bias, entries, listed, tiles, kv_tile, query)
        queries = q_tiles.index_select(0, picked).unsqueeze(1)
        parts = []
        for start, stop in _pieces(width, row_bytes, room):
            piece = entries[:, start:stop].flatten()
            keys, values = workspace.gather(k_tiles, v_tiles, piece, (len(rows), 1, -1, dim))
            bias_of_piece = None if mask is None else mask[..., start * kv_tile : stop * kv_tile]
            parts.append(_dense(queries, keys, values, bias_of_piece, scale))
        tile_out, tile_lse = parts[0] if len(parts) == 1 else merge_parts(parts)
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
        number = entries.numel()  # `len` of a tensor runs Python
        size = number * self._kv_tile * shape[-1]
        if self._keys.numel() < size:
            self._keys, self._values = self._keys.new_empty(size), self._values.new_empty(size)
        parts = []
        for source, buffer in ((k_tiles, self._keys), (v_tiles, self._values)):
            target = buffer[:size].view(number, self._kv_tile, shape[-1])
            torch.index_select(source, 0, entries, out=target)
            parts.append(target.view(shape))
        return parts[0], parts[1]


def _key_bias(
    bias: torch.Tensor | None,
    entries: torch.Tensor,
    listed: torch.Tensor | None,
    tiles: int,
    kv_tile: int,
    query: torch.Tensor,
) -> torch.Tensor | None:
    """Additive key bias `[R, 1, 1, width * kv_tile]`: ln of members, -inf on padding; `None` if all zero."""
    if bias is None:
        if listed is None:
            return None
        rows = torch.zeros((*entries.shape, kv_tile), dtype=wide_dtype(query.dtype), device=query.device)
    else:
        rows = bias[entries % tiles]
        # Rows that list no ragged and no pooled tile need no bias, and attention without one is faster.
        if listed is None and not bool(rows.any()):
            return None
    if listed is not None:
        rows = rows.masked_fill(~listed.unsqueeze(-1), -math.inf)
    return rows.flatten(1)[:, None, None, :]


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
