"""What modes do in one layer where heads have orders to settle, measured on the query tiles of a trial."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.key_orders import order_maker, settled_key
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.order_trials import TRIAL_ROWS, TRIAL_TILES, OrderPair, OrderTrial, trials_of
from fastdit.recall import SampledMass, sample_mass
from fastdit.run_memory import RunMemory
from fastdit.search.head_errors import FloatArray, ModeFigures, head_figures
from fastdit_kernels import BlockMask

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ModeCall:
    """A mode in one call.

    Args:
        config: The mode.
        memory: Orders that heads have settled on, and masks that a cached mode reuses.
        site: Which call it is, and orders that heads are given.
    """

    config: AttentionConfig
    memory: RunMemory
    site: CallSite

    def given(self) -> list[int] | None:
        """Numbers of the orders that heads are given; `None` if they are to settle them."""
        if self.site.orders is None:
            return None
        return [self.config.order_pairs.index(pair) for pair in self.site.orders if pair is not None]

    def settled(self, errors: FloatArray, grid: VideoGrid) -> list[int]:
        """The number of the pair that each head settled on before, or settles on now by errors `[pairs, H]`."""
        site = self.site
        key = settled_key((site.transformer, site.layer, site.phase, 0), grid, errors.shape[1])
        return self.memory.orders.get(key, lambda: torch.from_numpy(errors.argmin(0))).tolist()


def measure_on_trial(
    tensors: Tensors,
    grid: VideoGrid,
    modes: Sequence[ModeCall],
    cache: MaskCache,
    grams: torch.Tensor | None = None,
) -> list[ModeFigures]:
    """Figures of several modes on one layer; what they have in common is computed once.

    Heads take the order that errs least in what is measured, which is remembered; or the one that they are given, or
    that was settled before.

    Args:
        tensors: Query, key and value `[B, H, S, D]` in the model's token order.
        grid: Geometry, of more than one query tile.
        modes: The modes.
        cache: Orders and geometric masks.
        grams: By `output_grams`; `None` for the error of the heads' own outputs.
    """
    batch, heads = tensors[0].shape[:2]
    given = [mode.given() for mode in modes]
    assert all(one is None or len(one) == heads for one in given), "what another settled is known of all heads or none"
    tables = [np.full((4, len(mode.config.order_pairs), heads), np.nan) for mode in modes]
    make = order_maker(tensors[0], tensors[1], grid, cache)
    for span, takers in _takers(modes, given, heads).items():
        for trial in trials_of(*tensors, grid, span, make, takers):
            members = takers[trial.pair, trial.heads]
            own = None if grams is None else grams[list(trial.heads)]
            found = _figures_of_trial(trial, [modes[number].config for number in members], batch, own)
            for number, table in zip(members, found, strict=True):
                place = modes[number].config.order_pairs.index(trial.pair)
                tables[number][:, place, list(trial.heads)] = table
    figures = []
    for mode, one, table in zip(modes, given, tables, strict=True):
        numbers = mode.settled(table[0], grid) if one is None else one
        figures.append(ModeFigures.of_table(table[:, numbers, range(heads)], np.array(numbers)))
    return figures


def _takers(
    modes: Sequence[ModeCall], given: Sequence[list[int] | None], heads: int
) -> dict[int, dict[tuple[OrderPair, tuple[int, ...]], list[int]]]:
    """Numbers of the modes that try a pair of orders in the same heads, by query rows of a tile, pair and heads."""
    found: dict[int, dict[tuple[OrderPair, tuple[int, ...]], list[int]]] = {}
    for number, (mode, numbers) in enumerate(zip(modes, given, strict=True)):
        for place, pair in enumerate(mode.config.order_pairs):
            members = tuple(head for head in range(heads) if numbers is None or numbers[head] == place)
            if members:
                found.setdefault(mode.config.q_tile, {}).setdefault((pair, members), []).append(number)
    return found


def _figures_of_trial(
    trial: OrderTrial, configs: Sequence[AttentionConfig], batch: int, grams: torch.Tensor | None
) -> list[FloatArray]:
    """Error, density, recall and relative error of each method under one pair of orders, `[4, H]`."""
    masses: dict[int, SampledMass] = {}
    found: dict[int, FloatArray] = {}
    for numbers in _alike(configs):
        some = [configs[number] for number in numbers]
        candidates = trial.candidates(some)
        masks = [mask for own in candidates for mask in own]
        outputs = iter(trial.outputs(masks, first_order=some[0].first_order))
        for number, own in zip(numbers, candidates, strict=True):
            options = []
            for mask in own:
                density, recall = _density(mask, trial.grid, batch), _recall(trial, mask, masses)
                options.append(head_figures(next(outputs), trial.sampled.exact, density, recall, grams))
            which = np.argmin([option[3] for option in options], 0)
            found[number] = np.stack(options)[which, :, range(len(trial.heads))].T
    return [found[number] for number in range(len(configs))]


def _alike(configs: Sequence[AttentionConfig]) -> list[list[int]]:
    """Numbers of the methods that select alike, and so are asked together."""
    together: dict[Hashable, list[int]] = {}
    for number, config in enumerate(configs):
        alike = config.selects_with
        together.setdefault((number,) if alike is None else (alike, config.first_order), []).append(number)
    return list(together.values())


def _recall(trial: OrderTrial, mask: BlockMask, masses: dict[int, SampledMass]) -> torch.Tensor:
    """Recall of a mask on the sampled rows, `[B, H]`; their mass is computed once for key tiles of one size."""
    if mask.kv_tile not in masses:
        masses[mask.kv_tile] = sample_mass(
            trial.query, trial.key, mask.q_layout, mask.kv_layout, TRIAL_TILES, TRIAL_ROWS
        )
    return masses[mask.kv_tile].recall(mask)


def _density(mask: BlockMask, grid: VideoGrid, batch: int) -> torch.Tensor:
    """Share of all scores that is computed where video queries keep what those of `mask` do, and others all keys."""
    kept = mask.kept_pairs().expand(batch, mask.counts.shape[1]).double().mean(0)
    share = kept / (mask.q_layout.length * grid.length)
    video = grid.query_segments[0] / grid.length
    density: torch.Tensor = video * share + (1 - video)
    return density
