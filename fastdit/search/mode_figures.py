"""What one mode does in one layer, measured on sampled query rows: error, density, recall."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastdit.attend import choose_tiles, settle_orders
from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.guard import SAMPLE_ROWS, SAMPLE_TILES
from fastdit.head_groups import split_heads
from fastdit.key_orders import has_choice, order_maker, settled_key
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.order_trials import TRIAL_ROWS, TRIAL_TILES, trials_of
from fastdit.recall import sampled_recall
from fastdit.run_memory import RunMemory
from fastdit.selectors.sampled_error import sample_exactly
from fastdit_kernels import BlockMask

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ModeFigures(NamedTuple):
    """What one mode does in one layer, of each head, `[H]`.

    Args:
        error: Mean squared error on sampled rows, behind the head's part of the output projection if that is given.
        density: Share of scores computed.
        recall: Share of the softmax mass on kept tokens, on sampled rows; the least of the batch entries.
        relative: Mean squared error over the mean square of the exact output, both before the projection.
        orders: Number of the pair among the mode's `order_pairs` that all this was measured with; -1 where heads have
            nothing to settle.
    """

    error: FloatArray
    density: FloatArray
    recall: FloatArray
    relative: FloatArray
    orders: IntArray


def measure_mode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    memory: RunMemory,
    site: CallSite,
    grams: torch.Tensor | None = None,
) -> ModeFigures:
    """One mode on one layer.

    Args:
        query: `[B, S, H, D]` in the model's token order.
        key: Likewise.
        value: Likewise.
        grid: Geometry.
        config: The mode.
        cache: Orders and geometric masks.
        memory: Orders that heads have settled on, and masks that a cached mode reuses.
        site: Which call it is, and orders that heads are given.
        grams: By `output_grams`; `None` for the error of the heads' own outputs.
    """
    tensors = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    group = split_heads(config, query.shape[2]).launches[0][0]
    if has_choice(group.config, grid) and not isinstance(config, CachedConfig):
        return _measure_on_trial(tensors, grid, config, cache, memory, site, grams)
    orders = np.full(query.shape[2], -1)
    if has_choice(group.config, grid):
        pairs = settle_orders(group, tensors, grid, cache, memory, site)
        orders = np.array([group.config.order_pairs.index(pair) for pair in pairs])
    q, selection, _ = choose_tiles(*tensors, grid, config, cache, memory, site)
    mask = selection.mask
    rows = sample_exactly(q.tokens, selection.key, selection.value, mask.q_layout, tiles=SAMPLE_TILES, rows=SAMPLE_ROWS)
    out = rows.outputs(selection.key, selection.value, mask, first_order=config.first_order)
    density = mask.kept_pairs().expand(*out.shape[:2]).double().mean(0) / grid.length**2
    recall = sampled_recall(q.tokens, selection.key, mask, SAMPLE_TILES, SAMPLE_ROWS)
    return _as_figures(_figures(out, rows.exact, density, recall, grams), orders)


def _measure_on_trial(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grid: VideoGrid,
    config: AttentionConfig,
    cache: MaskCache,
    memory: RunMemory,
    site: CallSite,
    grams: torch.Tensor | None,
) -> ModeFigures:
    """`measure_mode` where heads have orders to settle, on the query tiles of a trial.

    Heads take the order that errs least in what is measured, which is remembered; or the one that they are given, or
    that was settled before.
    """
    query, heads = tensors[0], tensors[0].shape[1]
    pairs, make = config.order_pairs, order_maker(tensors[0], tensors[1], grid, cache)
    place = settled_key((site.transformer, site.layer, site.phase, 0), grid, heads)
    given = None if site.orders is None else [pairs.index(pair) for pair in site.orders if pair is not None]
    assert given is None or len(given) == heads, "what another prompt settled is known of all heads or none"
    takers = [[head for head in range(heads) if given is None or given[head] == pair] for pair in range(len(pairs))]
    heads_of = {pair: members for pair, members in zip(pairs, takers, strict=True) if members}
    table = np.full((4, len(pairs), heads), np.nan)
    for trial in trials_of(*tensors, grid, config, make, heads_of):
        own = None if grams is None else grams[trial.heads]
        options = []
        for mask, out in zip(trial.masks, trial.outputs(first_order=config.first_order), strict=True):
            recall = sampled_recall(trial.query, trial.key, mask, TRIAL_TILES, TRIAL_ROWS)
            options.append(_figures(out, trial.sampled.exact, _density(mask, grid, query.shape[0]), recall, own))
        which = np.argmin([option[3] for option in options], 0)
        chosen = np.stack(options)[which, :, range(len(trial.heads))]
        table[:, pairs.index(trial.pair), trial.heads] = chosen.T
    if given is None:
        best = torch.from_numpy(table[0].argmin(0))
        given = memory.orders.get(place, lambda: best).tolist()
    return _as_figures(table[:, given, range(heads)], np.array(given))


def _as_figures(table: FloatArray, orders: IntArray) -> ModeFigures:
    error, density, recall, relative = table
    return ModeFigures(error, density, recall, relative, orders)


def _density(mask: BlockMask, grid: VideoGrid, batch: int) -> torch.Tensor:
    """Share of all scores that is computed where video queries keep what those of `mask` do, and others all keys."""
    kept = mask.kept_pairs().expand(batch, mask.counts.shape[1]).double().mean(0)
    share = kept / (mask.q_layout.length * grid.length)
    video = grid.query_segments[0] / grid.length
    density: torch.Tensor = video * share + (1 - video)
    return density


def _figures(
    out: torch.Tensor, exact: torch.Tensor, density: torch.Tensor, recall: torch.Tensor, grams: torch.Tensor | None
) -> FloatArray:
    """Error, density, recall and relative error as `ModeFigures` has them, `[4, H]`."""
    exact = exact.double()
    missed = out.double() - exact
    own = missed.square().mean((0, 2, 3))
    error = own if grams is None else projected_error(missed, grams)
    energy = exact.square().mean((0, 2, 3))
    relative = own / energy.clamp_min(torch.finfo(torch.float64).tiny)
    figures = error, density, recall.double().amin(0).clamp(0, 1), relative
    return np.stack([x.cpu().numpy() for x in figures])


def output_grams(site: Any) -> torch.Tensor | None:
    """`W_h^T W_h / width` of each head's columns `W_h` of the output projection, fp64 `[H, D, D]`.

    With them the mean square of what a head's error becomes behind the projection is a product of `D` numbers, without
    the width of the model.

    Args:
        site: Attention module with `heads`; its `to_out` is a linear layer, or a list that begins with one.

    Returns:
        `None` where the module has no such projection (joint blocks that project text and video together), or where
        its weight is not a plain matrix (quantised, or offloaded to "meta").
    """
    linear, heads = getattr(site, "to_out", None), int(site.heads)
    if isinstance(linear, (torch.nn.ModuleList, torch.nn.Sequential)) and len(linear):
        linear = linear[0]
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    if weight.shape[1] % heads or weight.device.type == "meta":
        return None
    columns = weight.detach().double().unflatten(1, (heads, -1)).permute(1, 0, 2)
    grams: torch.Tensor = columns.mT @ columns / weight.shape[0]
    return grams


def projected_error(missed: torch.Tensor, grams: torch.Tensor) -> torch.Tensor:
    """Mean square of `W_h missed_h` over the model's width, of each head.

    Args:
        missed: Errors of the heads' outputs, fp64 `[B, H, N, D]`.
        grams: `[H, D, D]`.

    Returns:
        fp64 `[H]`.
    """
    # Rounding must not make a sum of squares negative.
    return ((missed @ grams.to(missed.device)) * missed).sum(3).mean((0, 2)).clamp_min(0.0)
