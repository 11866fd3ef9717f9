"""The error that masks make, measured exactly on a few query rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit.recall import mask_of_tiles, spread_rows
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention, pad_to_tiles, pool_key_value
from fastdit_kernels.first_order import add_first_order
from fastdit_kernels.workspace import GPU_WORKSPACE_BYTES


@dataclass(frozen=True)
class SampledRows:
    """Query rows and what dense attention gives them.

    Args:
        query: `[B, H, N * rows, D]`, `rows` rows of each of `N` query tiles.
        exact: Dense attention of them.
        tiles: The query tiles, int64 `[N]`.
        rows: Rows per tile.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        middle: The row in the middle of each tile, `[B, H, N, D]`, by which a whole call takes pooled tiles to first
            order; `None` where that is not asked for.
    """

    query: torch.Tensor
    exact: torch.Tensor
    tiles: torch.Tensor
    rows: int
    scale: float | None = None
    middle: torch.Tensor | None = None

    def error(
        self, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, *, first_order: bool = False
    ) -> torch.Tensor:
        """`|o - o*| / |o*|` of the sampled rows under a mask, mean over the rows: `[B, H]`.

        Args:
            key: `[B, H, Skv, D]` in the order that the mask counts in, which may differ from mask to mask.
            value: Likewise.
            mask: Over all query tiles.
            first_order: Take pooled tiles to first order, as in a whole call.
        """
        (out,) = self.outputs(key, value, [mask], first_order=first_order)
        out = out.float()
        exact = self.exact.float()
        norm = exact.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        mean: torch.Tensor = ((out - exact).norm(dim=-1) / norm).mean(2)
        return mean

    def outputs(
        self, key: torch.Tensor, value: torch.Tensor, masks: Sequence[BlockMask], *, first_order: bool = False
    ) -> list[torch.Tensor]:
        """What the sampled rows get under each of some masks, `[B, H, N * rows, D]`; arguments as for `error`.

        Masks of one layout of the keys are attended in one call, which pools the keys once.
        """
        together: dict[TileLayout, list[int]] = {}
        for number, mask in enumerate(masks):
            together.setdefault(mask.kv_layout, []).append(number)
        found: dict[int, torch.Tensor] = {}
        for numbers in together.values():
            outs = self._outputs(key, value, [masks[number] for number in numbers], first_order)
            found |= dict(zip(numbers, outs, strict=True))
        return [found[number] for number in range(len(masks))]

    def _outputs(
        self, key: torch.Tensor, value: torch.Tensor, masks: Sequence[BlockMask], first_order: bool
    ) -> Sequence[torch.Tensor]:
        """`outputs` for masks of one layout."""
        query, place, extra = self.query, 0, 0
        if first_order and masks[0].kv_layout.num_levels > 1:
            assert self.middle is not None, "sampled with `sample_exactly`"
            # In the middle of the sampled rows, where it is found as the middle of a tile.
            place, extra = (self.rows + 1) // 2, 1
            own = query.unflatten(2, (-1, self.rows))
            query = torch.cat([own[:, :, :, :place], self.middle.unsqueeze(3), own[:, :, :, place:]], 3).flatten(2, 3)
        mask = _joined([mask_of_tiles(mask, self.tiles, self.rows + extra) for mask in masks], *query.shape[:2])
        out = self._attend(query.repeat(1, 1, len(masks), 1), key, value, mask, extra)
        if extra:
            out = out.unflatten(2, (-1, self.rows + 1))
            out = torch.cat([out[:, :, :, :place], out[:, :, :, place + 1 :]], 3).flatten(2, 3)
        return out.chunk(len(masks), 2)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, first_order_rows: int
    ) -> torch.Tensor:
        # Tiles of so few rows suit no compiled kernel, and gathering by lists asks a GPU for their lengths.
        if query.device.type != "cpu":
            return masked_attention(query, key, value, mask, self.scale, first_order_rows)
        out: torch.Tensor = block_sparse_attention(
            query, key, value, mask, scale=self.scale, first_order_rows=first_order_rows, implementation="torch"
        )
        return out


def _joined(masks: Sequence[BlockMask], batch: int, heads: int) -> BlockMask:
    """One mask over the query tiles of several, one after another."""
    if len(masks) == 1:
        return masks[0]
    width = max(mask.indices.shape[3] for mask in masks)
    indices = [F.pad(mask.indices, (0, width - mask.indices.shape[3])).expand(batch, heads, -1, -1) for mask in masks]
    counts = [mask.counts.expand(batch, heads, -1) for mask in masks]
    layouts = [mask.q_layout for mask in masks]
    q_layout = TileLayout((sum(layout.length for layout in layouts),), layouts[0].tile)
    return BlockMask(torch.cat(indices, 2), torch.cat(counts, 2), q_layout, masks[0].kv_layout)


def sample_exactly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    q_layout: TileLayout,
    *,
    tiles: int = 16,
    rows: int = 2,
    scale: float | None = None,
) -> SampledRows:
    """Dense attention of a few rows; costs `tiles * rows / Sq` of dense attention.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]`, any order.
        value: In the order of `key`.
        q_layout: Query tiles; only those of the first segment (the video) are sampled, evenly spread.
        tiles: Query tiles to sample.
        rows: Rows of each.
        scale: Factor on the scores, default `1 / sqrt(D)`.
    """
    chosen, picked = spread_rows(q_layout, tiles, rows, query.device)
    _, middle = spread_rows(q_layout, tiles, 1, query.device)
    sampled = query.index_select(2, picked)
    exact = F.scaled_dot_product_attention(sampled, key, value, scale=scale)
    return SampledRows(sampled, exact, chosen, rows, scale, query.index_select(2, middle))


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
    first_order_rows: int = 0,
) -> torch.Tensor:
    """`block_sparse_attention` of a few query rows by all their scores: no list is read, so nothing waits for a GPU.

    Args:
        query: `[B, H, R, D]`.
        key: `[B, H, Skv, D]` in tile order.
        value: Likewise.
        mask: Lists for the tiles of these rows, which are whole.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        first_order_rows: See `block_sparse_attention`.

    Returns:
        `[B, H, R, D]`; 0 where a row has no key.
    """
    layout = mask.kv_layout
    keys, values = (
        (pad_to_tiles(x, layout) for x in (key, value))
        if layout.num_levels == 1
        else pool_key_value(key, value, layout)
    )
    wide = torch.promote_types(query.dtype, torch.float32)
    factor = query.shape[3] ** -0.5 if scale is None else scale
    bias = layout.row_members(query.device).to(wide).log()
    keep = mask.to_dense().expand(*query.shape[:2], -1, -1)
    heads = max(1, GPU_WORKSPACE_BYTES // (keys.shape[2] * (query.shape[2] + query.shape[3]) * wide.itemsize))
    parts = [x.flatten(0, 1).split(heads) for x in (query, keys, values, keep)]
    found, levels = [], []
    for q, k, v, kept in zip(*parts, strict=True):
        scores = (q.to(wide) * factor) @ k.to(wide).mT + bias
        seen = kept.repeat_interleave(layout.tile, 2).repeat_interleave(mask.q_tile, 1)
        scores = scores.masked_fill(~seen, -torch.inf)
        if first_order_rows:
            levels.append(scores.logsumexp(2))
        weights = scores.softmax(2).masked_fill(~seen, 0.0)
        found.append((weights @ v.to(wide)).to(query.dtype))
    out = torch.cat(found).view(query.shape)
    if not first_order_rows:
        return out
    lse = torch.cat(levels).view(query.shape[:3])
    return add_first_order(out, lse, query, keys, values, mask, rows=first_order_rows, scale=factor)
