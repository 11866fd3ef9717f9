"""Errors of a method at several densities, drawn towards the curve that all heads have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastdit.config import AttentionConfig, CachedConfig
from fastdit.search.head_errors import FloatArray
from fastdit.search.ladder import Mode
from fastdit.search.results import Arrays

# Of what sets the curve of a head apart from those of the others, the share that is believed where one prompt was
# measured. One step of one prompt says less of the frames than it seems, and an allocation picks what was measured too
# low. Plans of the bundled model for the second half of the run had 46.9 dB with all of it, 48.2 with half, 47.8 with a
# quarter, 43.9 with none (means of four prompts at one density; one density in all heads: 44.8). Of what four prompts
# say half is too little: 46.7 instead of 51.4 dB in steps 1 and 2.
BELIEVED = 0.5
# With fewer densities of a method there is no curve.
LEAST_DENSITIES = 3


def with_drawn_curves(measured: Sequence[Arrays], modes: Sequence[Mode], believed: float = BELIEVED) -> list[Arrays]:
    """What was measured of each prompt, with errors drawn towards the common curve of their method.

    In phases that were measured on the first prompt alone, the error of head `h` at density `d` is split as in a
    two-way layout without interaction,

        log e[h, d] = level[h] + curve[d] + rest[h, d]

    and becomes `exp(level + curve + believed * rest)`. Errors of methods at one or two densities, of dense attention,
    and those that are 0 or were not measured stay as they are.

    Args:
        measured: Of each prompt `error_0` and so on, of each transformer `[phases, layers, heads, modes]`, and other
            arrays.
        modes: The ladder.
        believed: Share of `rest` that is kept; 1 leaves all errors as they are.
    """
    methods: dict[str, list[int]] = {}
    for number, mode in enumerate(modes):
        if isinstance(mode, AttentionConfig):
            source = mode.source if isinstance(mode, CachedConfig) else mode
            methods.setdefault(f"{mode.method} {source.method}", []).append(number)
    curves = [columns for columns in methods.values() if len(columns) >= LEAST_DENSITIES]
    first = dict(measured[0])
    for name in (name for name in first if name.startswith("error_")):
        tables = np.array(first[name])
        for phase, table in enumerate(tables):
            if any(np.isfinite(arrays[name][phase]).any() for arrays in measured[1:]):
                continue
            for columns in curves:
                table[..., columns] = _drawn(table[..., columns], believed)
        first[name] = tables
    return [first, *measured[1:]]


def _drawn(error: FloatArray, believed: float) -> FloatArray:
    """`with_drawn_curves` of one method in one phase, `[layers, heads, densities]`."""
    known = np.isfinite(error) & (error > 0)
    logs = np.log(np.where(known, error, 1.0))
    curve = _mean(logs, known, (0, 1))
    level = _mean(logs - curve, known, (2,))
    drawn: FloatArray = np.where(known, np.exp(curve + level + believed * (logs - curve - level)), error)
    return drawn


def _mean(x: FloatArray, known: NDArray[np.bool_], axes: tuple[int, ...]) -> FloatArray:
    """Mean of what is known along some axes, which stay; 0 where nothing is."""
    total: FloatArray = np.where(known, x, 0.0).sum(axes, keepdims=True)
    mean: FloatArray = total / np.maximum(known.sum(axes, keepdims=True), 1)
    return mean
