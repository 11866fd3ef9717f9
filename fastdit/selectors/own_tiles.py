"""Tile pairs that every selector keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastdit_kernels import TileLayout


def own_tiles(
    q_layout: TileLayout, kv_layout: TileLayout, device: torch.device, first: torch.Tensor | None = None
) -> torch.Tensor:
    """Key tiles that every row must keep: those sharing a token with the query tile, and all of the second segment.

    The first segments, of `grid.query_segments` and `grid.key_segments`, start with the same token. Queries of the
    second segment keep everything.

    Args:
        q_layout: Query tiles.
        kv_layout: Key tiles; level 0 counts.
        device: Where the result lies.
        first: Instead of all query tiles, runs of video queries: the place of the first query of each, int64 `[N]`;
            `q_layout` then has one tile for each.

    Returns:
        bool `[NQ, NK]`.
    """
    k_first = torch.arange(kv_layout.segment_tiles(0)[0], device=device) * kv_layout.tile
    q_first = torch.arange(q_layout.segment_tiles(0)[0], device=device) * q_layout.tile if first is None else first
    k_end, q_end = k_first + kv_layout.tile, q_first + q_layout.tile
    keep = torch.ones(q_layout.num_tiles, kv_layout.num_tiles, dtype=torch.bool, device=device)
    keep[: len(q_first), : len(k_first)] = (q_first[:, None] < k_end) & (k_first < q_end[:, None])
    return keep


def most_own_tiles(q_layout: TileLayout, kv_layout: TileLayout) -> int:
    """The largest number of `own_tiles` that a row may have, from the geometry alone."""
    if len(q_layout.segments) > 1:
        return kv_layout.num_tiles
    return _most_touched(q_layout, kv_layout) + sum(kv_layout.segment_tiles(0)[1:])


def _most_touched(q_layout: TileLayout, kv_layout: TileLayout) -> int:
    """A run of as many tokens as a query tile touches at most this many key tiles of the first segment."""
    return min(kv_layout.segment_tiles(0)[0], (q_layout.tile - 2) // kv_layout.tile + 2)


@dataclass(frozen=True)
class OwnTiles:
    """Level-0 tiles of the video that are kept in any case: those that share a token with the query tile.

    Args:
        first: The first of each video query tile, int64 `[t]`.
        last: The last one, `[t]`.
        heads: bool `[G]`: heads whose keys share the order of the queries; others have none.
        most: No query tile has more.
    """

    first: torch.Tensor
    last: torch.Tensor
    heads: torch.Tensor
    most: int

    @classmethod
    def of(
        cls, q_layout: TileLayout, kv_layout: TileLayout, heads: torch.Tensor, runs: torch.Tensor | None = None
    ) -> OwnTiles:
        """Those of all video query tiles, or of some runs as in `own_tiles`."""
        if runs is None:
            runs = torch.arange(q_layout.segment_tiles(0)[0], device=heads.device) * q_layout.tile
        last = (runs + q_layout.tile).clamp(max=kv_layout.segments[0]) - 1
        return cls(runs // kv_layout.tile, last // kv_layout.tile, heads, _most_touched(q_layout, kv_layout))

    def some(self, tiles: slice) -> OwnTiles:
        """Those of some query tiles."""
        return replace(self, first=self.first[tiles], last=self.last[tiles])

    def of_heads(self, heads: torch.Tensor) -> OwnTiles:
        """The same for heads `[G]` that share the order of the queries."""
        return replace(self, heads=heads)

    def hold(self, tile: torch.Tensor, level: int) -> torch.Tensor:
        """Which tiles `[G, t, M]`, or `[M]` for all alike, of a level hold one of them: bool `[G, t, M]`."""
        first, last = (self.first >> level).unsqueeze(1), (self.last >> level).unsqueeze(1)
        return (tile >= first) & (tile <= last) & self.heads.view(-1, 1, 1)
