"""The one data structure: which key tiles, at which pooling level, each query tile attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.tile_layout import TileLayout

LEVEL_SHIFT = 28
TILE_BITS = (1 << LEVEL_SHIFT) - 1


@dataclass(frozen=True, eq=False)
class BlockMask:
    """For every (batch, head, query tile) a list of key tiles; everything not listed is skipped.

    An entry is one int32, `tile | level << 28`, where `tile` counts in the concatenated buffer of `kv_layout`.
    The tokens behind the entries of one row must be disjoint; see `validate`.

    Args:
        indices: int32 `[B, H, NQ, K]`; the first `counts` entries of a row are meant, the rest is ignored.
        counts: int32 `[B, H, NQ]`.
        q_layout: Tiles of the queries (one level).
        kv_layout: Tiles of the keys and values, with all pooling levels.
        known_pairs: What `kept_pairs` gives, where it is known; otherwise it is counted on the first request.

    `B` and `H` may be 1 to serve all batches or heads.
    """

    indices: torch.Tensor
    counts: torch.Tensor
    q_layout: TileLayout
    kv_layout: TileLayout
    known_pairs: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.indices.ndim != 4 or self.counts.shape != self.indices.shape[:3]:
            raise InvalidInputError(
                f"indices {tuple(self.indices.shape)} and counts {tuple(self.counts.shape)}: "
                "accepted are [B, H, NQ, K] and [B, H, NQ]"
            )
        if self.indices.dtype != torch.int32 or self.counts.dtype != torch.int32:
            raise InvalidInputError(f"indices {self.indices.dtype}, counts {self.counts.dtype}: both must be int32")
        if self.q_layout.num_levels != 1:
            raise InvalidInputError("q_layout has pooling levels: only keys and values are pooled")
        if self.indices.shape[2] != self.q_layout.num_tiles:
            raise InvalidInputError(
                f"indices list {self.indices.shape[2]} query tiles, the query layout has {self.q_layout.num_tiles}"
            )

    @classmethod
    def from_dense(
        cls,
        keep: torch.Tensor,
        *,
        q_len: int | tuple[int, ...],
        kv_len: int | tuple[int, ...],
        q_tile: int = 128,
        kv_tile: int = 64,
        num_levels: int = 1,
        max_tiles: int | None = None,
    ) -> BlockMask:
        """List the true entries of a boolean table, in ascending tile order.

        Args:
            keep: bool `[B, H, NQ, T]` over query tiles and the tiles of all levels (`T = NK` for one level).
            q_len: Query tokens, or token counts of segments that each start on a tile boundary.
            kv_len: Key tokens, likewise.
            q_tile: Query rows of a tile.
            kv_tile: Key rows of a tile, at every level.
            num_levels: Pooling levels in `keep`.
            max_tiles: No row of `keep` has more true entries, so that the mask needs no more slots; `None` if that is
                not known.

        Raises:
            InvalidInputError: The table does not fit the tile counts.
        """
        q_layout = TileLayout(q_len if isinstance(q_len, tuple) else (q_len,), q_tile)
        kv_layout = TileLayout(kv_len if isinstance(kv_len, tuple) else (kv_len,), kv_tile, num_levels)
        expected = (q_layout.num_tiles, kv_layout.total_tiles)
        if keep.ndim != 4 or keep.dtype != torch.bool or tuple(keep.shape[2:]) != expected:
            raise InvalidInputError(
                f"keep is {keep.dtype} {tuple(keep.shape)}: accepted is bool [B, H, {expected[0]}, {expected[1]}]"
            )
        # A stable descending sort of the booleans puts the kept tiles first, in order, without a host round trip.
        order = torch.sort(keep.to(torch.int8), dim=-1, descending=True, stable=True).indices
        order = order[..., :max_tiles]
        packed = order + (kv_layout.tile_levels(keep.device) << LEVEL_SHIFT)[order]
        return cls(packed.to(torch.int32), keep.sum(-1, dtype=torch.int32), q_layout, kv_layout)

    @classmethod
    def full(cls, q_layout: TileLayout, kv_layout: TileLayout, device: torch.device | None = None) -> BlockMask:
        """Dense attention: every query tile lists all key tiles of level 0; batch and head size 1."""
        tiles = torch.arange(kv_layout.num_tiles, dtype=torch.int32, device=device)
        indices = tiles.expand(1, 1, q_layout.num_tiles, -1).contiguous()
        counts = torch.full(indices.shape[:3], kv_layout.num_tiles, dtype=torch.int32, device=device)
        return cls(indices, counts, q_layout, kv_layout)

    @property
    def q_tile(self) -> int:
        """Query rows of a tile."""
        return self.q_layout.tile

    @property
    def kv_tile(self) -> int:
        """Key rows of a tile."""
        return self.kv_layout.tile

    @property
    def is_listed(self) -> torch.Tensor:
        """Bool `[B, H, NQ, K]`: which slots of `indices` are meant."""
        slots = torch.arange(self.indices.shape[-1], device=self.indices.device)
        return slots < self.counts.unsqueeze(-1)

    def to_dense(self) -> torch.Tensor:
        """The boolean table `[B, H, NQ, T]` over the tiles of all levels; inverse of `from_dense`."""
        shape = (*self.counts.shape, self.kv_layout.total_tiles + 1)
        keep = torch.zeros(shape, dtype=torch.bool, device=self.indices.device)
        # Unlisted slots may hold anything, so they are sent to a column that is cut off.
        tiles = torch.where(self.is_listed, self.indices & TILE_BITS, self.kv_layout.total_tiles)
        return keep.scatter_(-1, tiles.long(), True)[..., :-1]

    def kept_pairs(self) -> torch.Tensor:
        """Attention scores computed: sum over entries of (query rows x key rows), padding left out; int64 `[B, H]`.

        Counted once for each mask; not to be written to.
        """
        if self.known_pairs is None:
            object.__setattr__(self, "known_pairs", self._count_pairs())
        assert self.known_pairs is not None, "counted above"
        return self.known_pairs

    def _count_pairs(self) -> torch.Tensor:
        rows = self.counts.long() * self.kv_tile
        # All tiles are full but a few, which the geometry names: no table of the rows of every entry.
        ragged = self.kv_layout.ragged_tiles()
        if ragged:
            listed = self.is_listed
            for tile, level, missing in ragged:
                rows -= (listed & (self.indices == tile + (level << LEVEL_SHIFT))).sum(-1) * missing
        return (rows * self.q_layout.tile_rows(rows.device)).sum(-1)

    def density(self) -> float:
        """Attention FLOPs executed / dense attention FLOPs, mean over batch and heads."""
        return self.kept_pairs().double().mean().item() / (self.q_layout.length * self.kv_layout.length)

    def coverage(self) -> float:
        """Share of key tokens represented at any level, mean over query tiles (weighted by their rows)."""
        device = self.indices.device
        members = self.kv_layout.row_members(device).view(-1, self.kv_tile).sum(1)
        tokens = (self.to_dense() * members).sum(-1).double()
        weight = self.q_layout.tile_rows(device).double() / self.q_layout.length
        return (tokens * weight).sum(-1).mean().item() / self.kv_layout.length

    def to(self, device: torch.device) -> BlockMask:
        """The same mask on another device."""
        return BlockMask(self.indices.to(device), self.counts.to(device), self.q_layout, self.kv_layout)

    def validate(self) -> None:
        """Check the entries themselves: range, level, and that no token is counted twice in a row.

        Costs a pass over the mask and a device synchronisation; meant for tests and for masks from outside.

        Raises:
            InvalidInputError: Names the first rule that is broken.
        """
        if bool((self.counts < 0).any()) or bool((self.counts > self.indices.shape[-1]).any()):
            raise InvalidInputError("counts must lie between 0 and the number of slots")
        tiles = torch.where(self.is_listed, self.indices & TILE_BITS, 0).long()
        levels = torch.where(self.is_listed, self.indices >> LEVEL_SHIFT, 0)
        if bool((tiles >= self.kv_layout.total_tiles).any()):
            raise InvalidInputError(f"an entry names a tile past the {self.kv_layout.total_tiles} of the key layout")
        if bool((self.kv_layout.tile_levels(tiles.device)[tiles] != levels).any()):
            raise InvalidInputError("the level of an entry is not the level of its tile")
        counted = self.is_listed.sum(-1)
        if bool((self.to_dense().sum(-1) != counted).any()) or bool((self._token_uses() > 1).any()):
            raise InvalidInputError("the entries of a query tile overlap: a token would be counted twice")

    def _token_uses(self) -> torch.Tensor:
        """How often each key token is represented, int `[B, H, NQ, tokens]`."""
        keep = self.to_dense()
        uses = []
        for segment, length in enumerate(self.kv_layout.segments):
            total = torch.zeros((*keep.shape[:3], length), dtype=torch.int32, device=keep.device)
            for level in range(self.kv_layout.num_levels):
                tiles = self.kv_layout.segment_tiles(level)
                first = self.kv_layout.level_offset(level) + sum(tiles[:segment])
                part = keep[..., first : first + tiles[segment]].int()
                total += part.repeat_interleave(self.kv_tile << level, dim=-1)[..., :length]
            uses.append(total)
        return torch.cat(uses, -1)
