"""One self-attention call as it was made: queries, keys, and the mask that said what each query sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit.errors import InvalidInputError
from fastdit.grid import VideoGrid
from fastdit_kernels import BlockMask, TileLayout, invert_order

# Level of keys that a query does not see.
DROPPED = -1


@dataclass(frozen=True, eq=False)
class RecordedLaunch:
    """The mask of some heads; tensors are on the CPU.

    Args:
        heads: Their numbers in the layer, in the order of the mask.
        mask: One batch entry.
        query_order: Order of the queries, a permutation of the model's sequence: `[S]`, or `[H, S]` for one per head.
        key_order: Likewise of the keys.
    """

    heads: tuple[int, ...]
    mask: BlockMask
    query_order: torch.Tensor
    key_order: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedCall:
    """One self-attention call, its last batch entry (the conditional one where guidance runs as a batch).

    Args:
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer.
        step: Denoising step.
        branch: CFG branch.
        phase: Number of the phase of the run.
        grid: Geometry; tokens are in the model's order.
        dense_reason: Why the call was dense; `None` if it was sparse.
        query: `[H, S, D]`, after norms and RoPE, on the CPU in the dtype it was computed in.
        key: Likewise.
        launches: Masks of the heads that were sparse; a head in none of them was dense.
    """

    transformer: int
    layer: int
    step: int
    branch: str
    phase: int
    grid: VideoGrid
    dense_reason: str | None
    query: torch.Tensor
    key: torch.Tensor
    launches: tuple[RecordedLaunch, ...] = ()

    @property
    def num_heads(self) -> int:
        """Heads of the layer."""
        return self.query.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, an order that heads share counted once for each launch."""
        masks = [
            x for one in self.launches for x in (one.mask.indices, one.mask.counts, one.query_order, one.key_order)
        ]
        return sum(x.nbytes for x in (self.query, self.key, *masks))

    def query_tile(self, head: int, token: int) -> torch.Tensor:
        """Tokens that share the query tile of a token, and so see the same keys: int64 `[n]`, rising.

        In a dense head every token has a tile of its own.

        Raises:
            InvalidInputError: There is no such head or token.
        """
        self._check(head, token)
        launch, place = self._launch_of(head)
        if launch is None:
            return torch.tensor([token])
        order = _of_head(launch.query_order, place)
        _, rows = _tile_of(launch.mask.q_layout, int(invert_order(order)[token]))
        return order[rows].sort().values

    def key_levels(self, head: int, token: int) -> torch.Tensor:
        """How a query token sees each key: int8 `[S]` in the model's order.

        Level 0 is the key itself, level `l` its run of `2**l` keys as one mean, `DROPPED` not at all.

        Raises:
            InvalidInputError: There is no such head or token.
        """
        self._check(head, token)
        launch, place = self._launch_of(head)
        if launch is None:
            return torch.zeros(self.grid.length, dtype=torch.int8)
        position = int(invert_order(_of_head(launch.query_order, place))[token])
        tile, _ = _tile_of(launch.mask.q_layout, position)
        levels = torch.empty(self.grid.length, dtype=torch.int8)
        levels[_of_head(launch.key_order, place)] = row_levels(launch.mask, place, tile)
        return levels

    def attention(self, head: int, token: int) -> torch.Tensor:
        """Exact softmax probabilities of a query token over all keys, float32 `[S]` in the model's order.

        Raises:
            InvalidInputError: There is no such head or token.
        """
        self._check(head, token)
        scores = self.key[head].float() @ self.query[head, token].float()
        probabilities: torch.Tensor = (scores * self.query.shape[2] ** -0.5).softmax(0)
        return probabilities

    def _launch_of(self, head: int) -> tuple[RecordedLaunch | None, int]:
        for launch in self.launches:
            if head in launch.heads:
                return launch, launch.heads.index(head)
        return None, 0

    def _check(self, head: int, token: int) -> None:
        if not (0 <= head < self.num_heads and 0 <= token < self.grid.length):
            raise InvalidInputError(
                f"head={head}, token={token}: accepted are heads 0 to {self.num_heads - 1} and tokens 0 to "
                f"{self.grid.length - 1}"
            )


def row_levels(mask: BlockMask, head: int, tile: int) -> torch.Tensor:
    """Level at which a query tile sees each key of the first batch entry: int8 `[S]` in tile order.

    Args:
        mask: The mask.
        head: Head; any where the mask serves all heads at once.
        tile: Query tile.
    """
    one = slice(head, head + 1) if mask.indices.shape[1] > 1 else slice(0, 1)
    layout, rows = mask.kv_layout, slice(tile, tile + 1)
    indices, counts = mask.indices[:1, one, rows], mask.counts[:1, one, rows]
    kept = BlockMask(indices, counts, TileLayout((1,), 1), layout).to_dense().flatten()
    parts = []
    for segment, length in enumerate(layout.segments):
        levels = torch.full((length,), DROPPED, dtype=torch.int8)
        for level in range(layout.num_levels):
            tiles = layout.segment_tiles(level)
            first = layout.level_offset(level) + sum(tiles[:segment])
            seen = kept[first : first + tiles[segment]].repeat_interleave(layout.tile << level)
            levels[seen[:length]] = level
        parts.append(levels)
    return torch.cat(parts)


def _tile_of(layout: TileLayout, position: int) -> tuple[int, slice]:
    """Tile of a row of the ordered sequence, and the rows of that tile."""
    first, tiles = 0, 0
    for length, count in zip(layout.segments, layout.segment_tiles(0), strict=True):
        if position < first + length:
            inside = (position - first) // layout.tile
            start = first + inside * layout.tile
            return tiles + inside, slice(start, min(start + layout.tile, first + length))
        first, tiles = first + length, tiles + count
    raise AssertionError("a position is inside the sequence")


def _of_head(order: torch.Tensor, place: int) -> torch.Tensor:
    return (order if order.ndim == 1 else order[place]).long()
