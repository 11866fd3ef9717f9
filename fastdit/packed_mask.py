"""Masks that are kept for long, at one bit per (query tile, key tile)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from fastdit_kernels import BlockMask, TileLayout


@dataclass(eq=False)
class PackedMask:
    """A `BlockMask` as bits: an eighth of its boolean table, a thirty-second of a list with a slot for every tile.

    Args:
        bits: uint8 `[B, H, NQ, ceil(T / 8)]` over the `T` tiles of all levels, lowest bit first.
        q_layout: Query tiles.
        kv_layout: Key tiles, all levels.
        slots: Most tiles that a row may list.
        kept_pairs: See `BlockMask.kept_pairs`, `[B, H]`; kept, so that it is not counted at every use.
    """

    bits: torch.Tensor
    q_layout: TileLayout
    kv_layout: TileLayout
    slots: int
    kept_pairs: torch.Tensor

    @classmethod
    def pack(cls, mask: BlockMask, batch: int, heads: int) -> PackedMask:
        """Pack a mask, with its batch and head sizes spelled out."""
        keep = mask.to_dense().expand(batch, heads, -1, -1)
        pairs = mask.kept_pairs().expand(batch, heads)
        return cls(_pack(keep), mask.q_layout, mask.kv_layout, mask.indices.shape[3], pairs)

    @property
    def shape(self) -> torch.Size:
        """Batch, heads, query tiles, bytes."""
        return self.bits.shape

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self.bits.numel()

    def unpack(self) -> BlockMask:
        """The mask, its rows listing tiles in ascending order."""
        places = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        keep = (self.bits.unsqueeze(-1) >> places) & 1
        mask = BlockMask.from_dense(
            keep.flatten(-2)[..., : self.kv_layout.total_tiles].bool(),
            q_len=self.q_layout.segments,
            kv_len=self.kv_layout.segments,
            q_tile=self.q_layout.tile,
            kv_tile=self.kv_layout.tile,
            num_levels=self.kv_layout.num_levels,
            max_tiles=self.slots,
        )
        return replace(mask, known_pairs=self.kept_pairs)

    def replace_heads(self, heads: torch.Tensor, mask: BlockMask) -> None:
        """Exchange some heads.

        Args:
            heads: int64 `[N]`.
            mask: Their new mask, `N` heads; it may have fewer levels.
        """
        keep = functional.pad(mask.to_dense(), (0, self.kv_layout.total_tiles - mask.kv_layout.total_tiles))
        keep = keep.expand(self.bits.shape[0], len(heads), -1, -1)
        self.bits.index_copy_(1, heads, _pack(keep))
        self.slots = max(self.slots, mask.indices.shape[3])
        pairs = mask.kept_pairs().expand(self.bits.shape[0], len(heads))
        self.kept_pairs = self.kept_pairs.index_copy(1, heads, pairs)


class KeptMask:
    """A mask that is a list, ready for use, while there is room, and bits when there is not.

    Args:
        mask: The mask.
        batch: Its batch size, spelled out.
        heads: Its heads, spelled out.
    """

    def __init__(self, mask: BlockMask, batch: int, heads: int) -> None:
        self.size = (batch, heads)
        self.q_layout, self.kv_layout = mask.q_layout, mask.kv_layout
        self._listed: BlockMask | None = mask
        self._packed: PackedMask | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        if self._listed is not None:
            return int(self._listed.indices.nbytes + self._listed.counts.nbytes)
        return self._bits().num_bytes

    def shrink(self) -> None:
        """Keep bits alone."""
        self._packed = self._bits()
        self._listed = None

    def unpack(self) -> BlockMask:
        """The mask."""
        return self._bits().unpack() if self._listed is None else self._listed

    def replace_heads(self, heads: torch.Tensor, mask: BlockMask) -> None:
        """As `PackedMask.replace_heads`; a list stays a list."""
        if self._listed is None:
            self._bits().replace_heads(heads, mask)
            return
        batch, rows = self.size[0], mask.indices.shape[2]
        slots = max(self._listed.indices.shape[3], mask.indices.shape[3])
        old, new = (functional.pad(x.indices, (0, slots - x.indices.shape[3])) for x in (self._listed, mask))
        indices = old.expand(*self.size, rows, slots).index_copy(1, heads, new.expand(batch, len(heads), rows, slots))
        counts = self._listed.counts.expand(*self.size, rows)
        counts = counts.index_copy(1, heads, mask.counts.expand(batch, len(heads), rows))
        self._listed = BlockMask(indices, counts, self.q_layout, self.kv_layout)

    def _bits(self) -> PackedMask:
        if self._listed is not None:
            return PackedMask.pack(self._listed, *self.size)
        assert self._packed is not None, "a mask is a list or bits"
        return self._packed


def _pack(keep: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(keep, (0, -keep.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = 2 ** torch.arange(8, dtype=torch.int16, device=keep.device)
    bits: torch.Tensor = (padded * weights).sum(-1, dtype=torch.int16)
    return bits.to(torch.uint8)
