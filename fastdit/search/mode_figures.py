"""What one mode does in one layer, measured on sampled query rows: error, density, recall."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastdit.attend import choose_tiles, settle_orders
from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.guard import SAMPLE_ROWS, SAMPLE_TILES
from fastdit.head_groups import split_heads
from fastdit.key_orders import has_choice
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.recall import sampled_recall
from fastdit.run_memory import RunMemory
from fastdit.selectors.sampled_error import sample_exactly

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
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    orders = np.full(query.shape[1], -1)
    group = split_heads(config, query.shape[1]).launches[0][0]
    if has_choice(group.config, grid):
        pairs = settle_orders(group, (query, key, value), grid, cache, memory, site)
        orders = np.array([group.config.order_pairs.index(pair) for pair in pairs])
    q, selection, _ = choose_tiles(query, key, value, grid, config, cache, memory, site)
    mask = selection.mask
    rows = sample_exactly(q.tokens, selection.key, selection.value, mask.q_layout, tiles=SAMPLE_TILES, rows=SAMPLE_ROWS)
    exact = rows.exact.double()
    out = rows.outputs(selection.key, selection.value, mask, first_order=config.first_order)
    missed = out.double() - exact
    own = missed.square().mean((0, 2, 3))
    error = own if grams is None else projected_error(missed, grams)
    density = mask.kept_pairs().expand(*query.shape[:2]).double().mean(0) / grid.length**2
    recall = sampled_recall(q.tokens, selection.key, mask, SAMPLE_TILES, SAMPLE_ROWS).double().amin(0)
    energy = exact.square().mean((0, 2, 3))
    relative = own / energy.clamp_min(torch.finfo(torch.float64).tiny)
    figures = {"error": error, "density": density, "recall": recall.clamp(0, 1), "relative": relative}
    return ModeFigures(**{name: x.cpu().numpy() for name, x in figures.items()}, orders=orders)


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
