"""Our own methods as selectors: every entry of `fastdit.config.METHODS`, and how each is asked for a density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastdit import VideoGrid
from fastdit.attend import choose_tiles
from fastdit.config import METHODS, AttentionConfig
from fastdit.mask_cache import MaskCache
from fastdit_eval.selector_task import Answer, Selector, SelectorTask


@dataclass(frozen=True)
class Variant:
    """Settings of a method that are compared under one name.

    Args:
        settings: Fields of the config. A function is called with the knob and the grid.
        knob: Range of the knob, bisected to the density asked for; `None` if the density itself is the knob.
    """

    settings: dict[str, Any]
    knob: tuple[float, float] | None = None


def _plain(knob: float, _: VideoGrid) -> float:
    return knob


def _window(knob: float, grid: VideoGrid) -> str:
    """A window that has a share of each axis."""
    return "window:" + ",".join(str(max(1, round(knob * size))) for size in (grid.frames, grid.height, grid.width))


def _same_place(knob: float, grid: VideoGrid) -> str:
    return f"multi_diagonal:{round(knob * max(grid.height, grid.width))}"


def _band(knob: float, grid: VideoGrid) -> str:
    return f"diagonal:{max(0.01, knob * grid.frames):.3f}"


# Heads are read in full or covered by pooled tiles, whichever errs less.
_EITHER: dict[str, Any] = {"density": _plain, "complement": "auto", "estimator": "rows"}

# A method that is not listed here is asked through its field `density`, or runs with its defaults if it has none.
VARIANTS: dict[str, dict[str, Variant]] = {
    "adaptive": {
        "adaptive": Variant({"density": _plain}),
        "adaptive pooled": Variant({"density": _plain, "complement": "all"}),
        "adaptive auto": Variant({"density": _plain, "order": "auto", "estimator": "rows"}),
        "adaptive auto pooled": Variant(_EITHER | {"order": "auto"}),
        "adaptive space_major pooled": Variant(_EITHER | {"order": "space_major"}),
        "adaptive frame_gilbert pooled": Variant(_EITHER | {"order": "frame_gilbert"}),
        "adaptive sampled": Variant({"density": _plain, "estimator": "sampled"}),
        "adaptive antidiagonal": Variant({"density": _plain, "estimator": "antidiagonal"}),
        "adaptive raster": Variant({"density": _plain, "order": "raster"}),
        "adaptive raster antidiagonal": Variant(
            {"density": _plain, "estimator": "antidiagonal", "order": "raster"},
        ),
        "adaptive top-p": Variant({"top_p": _plain, "min_density": 0.0, "max_density": 1.0}, (0.0, 1.0)),
    },
    "pyramid": {
        "pyramid": Variant({"density": _plain}),
        "pyramid gilbert": Variant({"density": _plain, "order": "gilbert"}),
        "pyramid of means": Variant({"density": _plain, "first_order": False}),
    },
    "static": {
        "static window": Variant({"pattern": _window}, (0.0, 1.0)),
        "static same place": Variant({"pattern": _same_place, "order": "space_major"}, (0.0, 1.0)),
        "static band": Variant({"pattern": _band, "order": "raster"}, (0.0, 1.0)),
    },
    # On a single call it is its source; what reuse loses shows over steps only.
    "cached": {},
    # A table of the others.
    "mixed": {},
}


def method_selectors() -> list[Selector]:
    """One selector for each variant of each method."""
    found = []
    for method, config in METHODS.items():
        has_density = "density" in {field.name for field in dataclasses.fields(config)}
        default = {method: Variant({"density": _plain} if has_density else {})}
        for name, variant in VARIANTS.get(method, default).items():
            shown = ", ".join(f"{field}={value}" for field, value in variant.settings.items() if not callable(value))
            found.append(
                Selector(
                    name=name,
                    kind="ours",
                    source=f"{config.__name__}({shown})",
                    select=partial(_select, method, variant.settings),
                    knob=variant.knob,
                )
            )
    return found


def _select(method: str, settings: dict[str, Any], task: SelectorTask, knob: float, _: float) -> Answer:
    given = {name: value(knob, task.grid) if callable(value) else value for name, value in settings.items()}
    make: Callable[..., AttentionConfig] = METHODS[method]
    config = make(q_tile=task.q_tile, kv_tile=task.kv_tile, min_tokens=0, **given)
    heads = task.heads
    query, chosen = choose_tiles(heads.query, heads.key, heads.value, task.grid, config, MaskCache())[:2]
    return Answer(chosen.mask, query.order, chosen.key, chosen.value, config.first_order_rows)
