"""Pairs of orders on trial: what a method selects in each for a few query tiles, and what that errs there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.orders import ShiftedOrder
from fastdit.selectors.sampled_error import SampledRows, sample_exactly
from fastdit_kernels import BlockMask, TileLayout, gather_tokens, invert_order

# Query tiles that pairs of orders are tried on, and rows of each. Six videos of the bundled model were 2.5 dB nearer to
# dense with eight rows than with four, the worst by .2 dB; with 16 rows, or all tiles, by no more.
TRIAL_TILES = 16
TRIAL_ROWS = 8
GOLDEN = 0.6180339887498949
# The orders of queries and of keys.
OrderPair = tuple[str, str]
# Gives a permutation of the model's sequence for some heads: `[S]` for all alike, or `[len(heads), S]`.
MakeOrder = Callable[[ShiftedOrder, Sequence[int]], torch.Tensor]


@dataclass(frozen=True, eq=False)
class OrderTrial:
    """One pair of orders on trial, `N` query tiles of the video.

    Args:
        pair: Orders of queries and of keys.
        heads: Numbers of the heads; all that follows is theirs.
        query: Queries of the tiles, `[B, H, N * q_tile, D]`.
        key: `[B, H, S, D]` in the second order.
        value: In the order of `key`.
        grid: Geometry.
        first: Places of the tiles in the first order, int64 `[N]`.
        sampled: `TRIAL_ROWS` rows of each tile.
    """

    pair: OrderPair
    heads: tuple[int, ...]
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    grid: VideoGrid
    first: torch.Tensor
    sampled: SampledRows

    def candidates(self, configs: Sequence[AttentionConfig]) -> list[list[BlockMask]]:
        """What methods select in these tiles; each head takes the mask that errs least of a method's.

        Args:
            configs: Methods that agree in `selects_with`, or a single one.
        """
        shares = torch.full((len(self.heads),), self.pair[0] == self.pair[1], device=self.query.device)
        given = self.query, self.key, self.value, self.grid, shares
        if configs[0].selects_with is None:
            return [config.candidates(*given, self.first) for config in configs]
        of_heads = [[config] * len(self.heads) for config in configs]
        return [[mask] for mask in configs[0].select_heads(*given, of_heads, self.first)]

    def outputs(self, masks: Sequence[BlockMask], *, first_order: bool) -> list[torch.Tensor]:
        """What the sampled rows get under each mask, `[B, H, N * TRIAL_ROWS, D]`."""
        return self.sampled.outputs(self.key, self.value, masks, first_order=first_order)


def trials_of(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    q_tile: int,
    make: MakeOrder,
    wanted: Iterable[tuple[OrderPair, tuple[int, ...]]],
) -> Iterator[OrderTrial]:
    """Pairs of orders on trial, one at a time.

    The tiles are those around the same tokens for all pairs, spread over the video along the Gilbert curve. Only these
    are selected for, so that a trial costs little in long sequences.

    Args:
        query: `[B, H, S, D]` in the model's token order.
        key: Likewise.
        value: Likewise.
        grid: Geometry, of more than one query tile.
        q_tile: Query rows of a tile.
        make: Makes an order.
        wanted: Pairs and the heads that are to try them.
    """
    video = grid.query_segments[0]
    number = min(TRIAL_TILES, -(-video // q_tile))
    part = torch.arange(number, dtype=torch.float64, device=query.device)
    # Another place in each of equal parts of the curve, so that places within query tiles differ as well.
    along = ((part + (part + 0.5) * GOLDEN % 1) * video / number).long()
    tokens = make(ShiftedOrder("gilbert"), range(query.shape[1]))[along]
    within = torch.arange(q_tile, device=query.device)
    for pair, heads in wanted:
        all_heads = len(heads) == query.shape[1]
        q, k, v = (query, key, value) if all_heads else (x[:, list(heads)] for x in (query, key, value))
        k_order = make(ShiftedOrder(pair[1]), heads)
        k, v = gather_tokens(k, k_order), gather_tokens(v, k_order)
        q_order = make(ShiftedOrder(pair[0]), heads)
        first = (invert_order(q_order)[tokens] // q_tile * q_tile).clamp(max=video - q_tile)
        q = q.index_select(2, q_order[(first.unsqueeze(1) + within).flatten()])
        sampled = sample_exactly(q, k, v, TileLayout((q.shape[2],), q_tile), tiles=number, rows=TRIAL_ROWS)
        yield OrderTrial(pair, heads, q, k, v, grid, first, sampled)


@torch.no_grad()
def trial_errors(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    make: MakeOrder,
) -> torch.Tensor:
    """Mean squared output error of every pair of orders on the sampled rows, `[pairs, B, H]`.

    Args:
        query: `[B, H, S, D]` in the model's token order.
        key: Likewise.
        value: Likewise.
        grid: Geometry.
        config: Method with `order_pairs`.
        make: Makes an order.
    """
    heads = tuple(range(query.shape[1]))
    wanted = [(pair, heads) for pair in config.order_pairs]
    errors: list[torch.Tensor] = []
    for trial in trials_of(query, key, value, grid, config.q_tile, make, wanted):
        exact = trial.sampled.exact.float()
        (masks,) = trial.candidates([config])
        outputs = trial.outputs(masks, first_order=config.first_order)
        errors.append(torch.stack([(out.float() - exact).square().mean((2, 3)) for out in outputs]).amin(0))
    return torch.stack(errors)
