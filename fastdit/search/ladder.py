"""The modes a search chooses from, each a method at one density."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

from fastdit.config import AdaptiveConfig, AttentionConfig, CachedConfig, MixedConfig, PyramidConfig, StaticConfig
from fastdit.errors import ConfigError
from fastdit.key_orders import GivenOrders
from fastdit.plan import ALL_SPARSE, DENSE

Mode = AttentionConfig | Literal["dense"]
Ladder = Mapping[str, Mode]

ADAPTIVE_DENSITIES = (0.02, 0.06, 0.2, 0.5)
PYRAMID_DENSITIES = (0.03, 0.06, 0.12, 0.2, 0.35, 0.5, 0.7)
PATTERNS = {"skip": "skip", "window": "window:frames=3", "same_place": "multi_diagonal:radius=1"}
# What drops most keys without pooled ones in their place may err alike in all tokens and steps, and one call shows too
# little of that: two heads of the bundled model at `adaptive_0.06` cost a plan of 36 dB 8 dB, one at `skip` 6.5 dB.
# Higher adaptive rungs do no harm, but no head takes them where there are pyramids, which may drop tiles as well.
WIDE_ONLY = {*PATTERNS, *(f"adaptive_{density:g}" for density in ADAPTIVE_DENSITIES), "pyramid_0.03"}
# Masks of cached rungs last for their whole phase, whatever the number of steps.
WHOLE_PHASE = 10_000


def default_ladder(
    q_tile: int = 128, kv_tile: int = 64, *, cached: bool = False, wide: bool = False
) -> dict[str, Mode]:
    """Dense, and pyramids at rising densities.

    Args:
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        cached: Also the variants of these methods whose masks are built once in a phase. They err no less and compute
            no fewer scores, so they are of use only where selecting has a cost.
        wide: Also skip, static patterns, and adaptive and pyramid at densities from .02 on. Plans of the bundled model
            are worse with them.
    """
    found: dict[str, AttentionConfig] = {}
    for name, pattern in PATTERNS.items():
        found[name] = StaticConfig(pattern=pattern)
    for density in ADAPTIVE_DENSITIES:
        found[f"adaptive_{density:g}"] = AdaptiveConfig(density=density)
    for density in PYRAMID_DENSITIES:
        found[f"pyramid_{density:g}"] = PyramidConfig(density=density)
    modes: dict[str, Mode] = {DENSE: DENSE}
    for name, config in found.items():
        if name in WIDE_ONLY and not wide:
            continue
        config = dataclasses.replace(config, schedule=ALL_SPARSE, min_tokens=0, q_tile=q_tile, kv_tile=kv_tile)
        modes[name] = config
        if cached and config.needs_tensors:
            modes[f"cached_{name}"] = CachedConfig(source=config, refresh_every=WHOLE_PHASE, min_recall=None)
    return modes


def numbered_orders(mode: Mode, numbers: Iterable[int]) -> GivenOrders:
    """The orders of some heads, by their numbers among the mode's `order_pairs`; -1 for none."""
    pairs = mode.order_pairs if isinstance(mode, AttentionConfig) else ()
    return tuple(None if number < 0 else pairs[number] for number in numbers)


def check_ladder(ladder: Ladder) -> dict[str, Mode]:
    """The ladder, with `"dense"` first.

    Raises:
        ConfigError: A mode cannot stand in a plan, or there is none besides dense.
    """
    modes: dict[str, Mode] = {DENSE: DENSE}
    for name, mode in ladder.items():
        if mode == DENSE:
            continue
        tested = isinstance(mode, CachedConfig) and (mode.mass != "source" or mode.min_recall is not None)
        if not isinstance(mode, AttentionConfig) or not mode.method or isinstance(mode, MixedConfig) or tested:
            raise ConfigError(
                f"ladder has {name!r}: {mode!r}: accepted are 'dense', methods that select themselves, and "
                "CachedConfig with mass='source' and min_recall=None"
            )
        if (mode.schedule, mode.min_tokens) != (ALL_SPARSE, 0):
            raise ConfigError(
                f"ladder has {name!r} with schedule or min_tokens: the search decides what is dense; accepted are "
                "schedule=Schedule(dense_steps=0, dense_layers=()) and min_tokens=0"
            )
        modes[name] = mode
    if len(modes) == 1:
        raise ConfigError("ladder has no sparse mode: give at least one")
    return modes
