"""What one mode does in one layer, of each head: error, density, recall."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

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

    @classmethod
    def of_table(cls, table: FloatArray, orders: IntArray) -> Self:
        """From rows of error, density, recall and relative error, `[4, H]`."""
        error, density, recall, relative = table
        return cls(error, density, recall, relative, orders)

    @classmethod
    def dense(cls, heads: int) -> Self:
        """Of dense attention."""
        zeros, ones = np.zeros(heads), np.ones(heads)
        return cls(zeros, ones, ones, zeros, np.full(heads, -1))


def head_figures(
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
