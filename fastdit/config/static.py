"""Settings of the static method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastdit.config.base import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.selectors import static
from fastdit.selectors.pattern_text import parse_pattern
from fastdit.selectors.static_patterns import Pattern
from fastdit_kernels import BlockMask, TileLayout


@dataclass(frozen=True, kw_only=True)
class StaticConfig(AttentionConfig):
    """Keep a fixed pattern of places, the same for all heads, layers and steps, rounded up to tiles.

    The tile of the query itself and all text tiles are always kept; text queries see everything.

    Args:
        pattern: A pattern such as `Window(frames=3) | Sink()` of `fastdit.selectors.static_patterns`, or its text
            form: names joined by `|`, each with its values or without for the defaults, e.g. `"radial|sink"`,
            `"window:3,9,9"` or `"multi_diagonal:radius=2|frames:4"`. Names are window, diagonal, multi_diagonal,
            stripe, radial, frames, sink, skip and dense. The config holds the pattern itself.
    """

    method: ClassVar[str] = "static"

    pattern: Pattern | str = "radial|sink"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pattern", parse_pattern(self.pattern))

    @property
    def needs_tensors(self) -> bool:
        """No: places alone count."""
        return False

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Round the pattern to tiles; see `selectors.static.select`. Of `query` only the device counts."""
        q_layout, kv_layout = TileLayout(grid.query_segments, self.q_tile), TileLayout(grid.key_segments, self.kv_tile)
        return static.select(parse_pattern(self.pattern), grid, self.order, q_layout, kv_layout, query.device)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; the pattern in its text form."""
        return {**super().to_dict(), "pattern": str(self.pattern)}
