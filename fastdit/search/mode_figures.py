"""What modes do in one layer, measured on sampled query rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastdit.attend import choose_tiles, settle_orders
from fastdit.config import CachedConfig
from fastdit.grid import VideoGrid
from fastdit.guard import SAMPLE_ROWS, SAMPLE_TILES
from fastdit.head_groups import split_heads
from fastdit.key_orders import has_choice
from fastdit.mask_cache import MaskCache
from fastdit.recall import sampled_recall
from fastdit.search.head_errors import ModeFigures, head_figures
from fastdit.search.trial_figures import ModeCall, Tensors, measure_on_trial
from fastdit.selectors.sampled_error import sample_exactly


def measure_modes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    modes: Sequence[ModeCall],
    cache: MaskCache,
    grams: torch.Tensor | None = None,
) -> list[ModeFigures]:
    """Figures of modes on one layer.

    Args:
        query: `[B, S, H, D]` in the model's token order.
        key: Likewise.
        value: Likewise.
        grid: Geometry.
        modes: The modes; those that reuse masks after those whose orders they share.
        cache: Orders and geometric masks.
        grams: By `output_grams`; `None` for the error of the heads' own outputs.
    """
    tensors = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    on_trial = [
        number
        for number, mode in enumerate(modes)
        if has_choice(mode.config, grid) and not isinstance(mode.config, CachedConfig)
    ]
    tried = measure_on_trial(tensors, grid, [modes[number] for number in on_trial], cache, grams)
    found = dict(zip(on_trial, tried, strict=True))
    for number, mode in enumerate(modes):
        if number not in found:
            found[number] = _measure_whole(tensors, grid, mode, cache, grams)
    return [found[number] for number in range(len(modes))]


def _measure_whole(
    tensors: Tensors, grid: VideoGrid, mode: ModeCall, cache: MaskCache, grams: torch.Tensor | None
) -> ModeFigures:
    """One mode, which selects for all query tiles."""
    config, memory, site = mode.config, mode.memory, mode.site
    heads = tensors[0].shape[1]
    group = split_heads(config, heads).launches[0][0]
    orders = np.full(heads, -1)
    if has_choice(group.config, grid):
        pairs = settle_orders(group, tensors, grid, cache, memory, site)
        orders = np.array([group.config.order_pairs.index(pair) for pair in pairs])
    q, selection, _ = choose_tiles(*tensors, grid, config, cache, memory, site)
    mask = selection.mask
    rows = sample_exactly(q.tokens, selection.key, selection.value, mask.q_layout, tiles=SAMPLE_TILES, rows=SAMPLE_ROWS)
    (out,) = rows.outputs(selection.key, selection.value, [mask], first_order=config.first_order)
    density = mask.kept_pairs().expand(*out.shape[:2]).double().mean(0) / grid.length**2
    recall = sampled_recall(q.tokens, selection.key, mask, SAMPLE_TILES, SAMPLE_ROWS)
    return ModeFigures.of_table(head_figures(out, rows.exact, density, recall, grams), orders)
