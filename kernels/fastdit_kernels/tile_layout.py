"""How a sequence is cut into tiles, at every pooling level, inside one concatenated buffer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit_kernels.errors import InvalidInputError

MAX_LEVELS = 8


@dataclass(frozen=True)
class TileLayout:
    """Rows of a token sequence in tiles: `[level 0 | level 1 | ...]`, each level `[segment 0 | segment 1 | ...]`.

    Level `l` holds one row per run of `2**l` consecutive tokens of a segment; the last run may be shorter. Every
    segment of every level starts on a tile boundary; the rows up to the next boundary are padding.

    Args:
        segments: Token counts of the segments, e.g. `(video, text)`.
        tile: Rows of one tile.
        num_levels: Pooling levels, level 0 (the tokens themselves) included; at most 8.
    """

    segments: tuple[int, ...]
    tile: int
    num_levels: int = 1

    def __post_init__(self) -> None:
        if not self.segments or any(length < 0 for length in self.segments) or sum(self.segments) < 1:
            raise InvalidInputError(f"segments={self.segments}: give non-negative token counts, at least one token")
        if self.tile < 1:
            raise InvalidInputError(f"tile={self.tile}: give a positive number of rows")
        if not 1 <= self.num_levels <= MAX_LEVELS:
            raise InvalidInputError(f"num_levels={self.num_levels}: accepted are 1 to {MAX_LEVELS}")

    @property
    def length(self) -> int:
        """Tokens in all segments."""
        return sum(self.segments)

    @property
    def num_tiles(self) -> int:
        """Tiles of level 0."""
        return self.level_tiles(0)

    @property
    def total_tiles(self) -> int:
        """Tiles of all levels."""
        return self.level_offset(self.num_levels)

    @property
    def is_exact(self) -> bool:
        """Whether there is one level and no padding, so that a row of the buffer is a token."""
        return self.num_levels == 1 and all(length % self.tile == 0 for length in self.segments)

    def segment_rows(self, level: int) -> tuple[int, ...]:
        """Rows of each segment at `level`: `ceil(tokens / 2**level)`."""
        return tuple(-(-length // (1 << level)) for length in self.segments)

    def segment_tiles(self, level: int) -> tuple[int, ...]:
        """Tiles of each segment at `level`."""
        return tuple(-(-rows // self.tile) for rows in self.segment_rows(level))

    def level_tiles(self, level: int) -> int:
        """Tiles of all segments at `level`."""
        return sum(self.segment_tiles(level))

    def level_offset(self, level: int) -> int:
        """First tile of `level` in the buffer."""
        return sum(self.level_tiles(lower) for lower in range(level))

    def row_members(self, device: torch.device | None = None) -> torch.Tensor:
        """Tokens that each buffer row stands for.

        Returns:
            int64 `[total_tiles * tile]`; 0 marks padding, values below `2**level` a ragged last run.
        """
        parts = []
        for level in range(self.num_levels):
            run = 1 << level
            for length, tiles in zip(self.segments, self.segment_tiles(level), strict=True):
                first = torch.arange(tiles * self.tile, device=device) * run
                parts.append((length - first).clamp(0, run))
        return torch.cat(parts)

    def tile_levels(self, device: torch.device | None = None) -> torch.Tensor:
        """Level of each tile of the buffer, int64 `[total_tiles]`."""
        # Made where it is used: a copy from the host would wait for the device.
        levels = range(self.num_levels)
        return torch.cat([torch.full((self.level_tiles(level),), level, device=device) for level in levels])

    def tile_rows(self, device: torch.device | None = None) -> torch.Tensor:
        """Rows of each tile that are not padding, int64 `[total_tiles]`."""
        return (self.row_members(device) > 0).view(-1, self.tile).sum(1)

    def ragged_tiles(self) -> list[tuple[int, int, int]]:
        """Tiles with padding: number in the buffer, level, and padding rows."""
        found, first = [], 0
        for level in range(self.num_levels):
            for rows, tiles in zip(self.segment_rows(level), self.segment_tiles(level), strict=True):
                first += tiles
                if rows % self.tile:
                    found.append((first - 1, level, tiles * self.tile - rows))
        return found
