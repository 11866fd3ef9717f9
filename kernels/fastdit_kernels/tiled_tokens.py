"""Tokens in tile order that are put into their tile buffer once, and not again before the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import gather_tokens, pad_to_tiles
from fastdit_kernels.token_moves import gather_to_tiles


def counts_passes(x: torch.Tensor) -> bool:
    """Whether tokens are moved by the operators that reorder and pad at once: on a GPU, where a pass is what costs."""
    return x.device.type == "cuda"


@dataclass(frozen=True, eq=False)
class TiledTokens:
    """Tokens in tile order, with what spares a pass over them when their tiles are padded.

    Args:
        tokens: `[B, H, S, D]` in tile order, any strides.
        buffer: The same padded to tiles, `[B, H, layout.num_tiles * tile, D]`, where it is there already; `tokens` is
            then a view of it.
        layout: Tiles of `buffer`, one level.
        source: What `tokens` was gathered from, and with which order: gathered anew where padding lies between tokens.
    """

    tokens: torch.Tensor
    buffer: torch.Tensor | None = None
    layout: TileLayout | None = None
    source: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def in_order(cls, x: torch.Tensor, order: torch.Tensor, layout: TileLayout) -> TiledTokens:
        """Put tokens in tile order; on a GPU into the tile buffer at once.

        Args:
            x: `[B, H, S, D]` in the model's token order, any strides.
            order: Token of each place in tile order, int64 `[S]`, or `[H, S]` for an order per head.
            layout: Tiles that the kernel is going to take, one level.
        """
        if not counts_passes(x):
            return cls(gather_tokens(x, order))
        if any(length % layout.tile for length in layout.segments[:-1]):
            # Selectors take tokens without gaps. A second gather is no dearer than filling the gaps of the first.
            return cls(gather_to_tiles(x, order, TileLayout((layout.length,), 1)), source=(x, order))
        buffer = gather_to_tiles(x, order, layout)
        return cls(buffer.narrow(2, 0, layout.length), buffer, layout)

    def padded(self, layout: TileLayout) -> torch.Tensor:
        """The tokens on tile boundaries, zero rows in between: `pad_to_tiles(tokens, layout)`, level 0 only."""
        layout = TileLayout(layout.segments, layout.tile)
        if self.buffer is not None and layout == self.layout:
            return self.buffer
        return pad_to_tiles(self.tokens, layout) if self.source is None else gather_to_tiles(*self.source, layout)
