"""Our own methods as selectors: every entry of `fastdit.config.METHODS`, and how each is asked for a density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from fastdit.config import METHODS, AttentionConfig
from fastdit_eval.selector_task import Answer, Selector, SelectorTask

# Settings of the variants that are compared. "@" marks the field that takes the knob; a method that is not listed here
# is asked through its field `density`, or runs with its defaults if it has none.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "adaptive": {
        "adaptive": {"density": "@"},
        "adaptive sampled": {"density": "@", "estimator": "sampled"},
        "adaptive antidiagonal": {"density": "@", "estimator": "antidiagonal"},
        "adaptive raster": {"density": "@", "order": "raster"},
        "adaptive raster antidiagonal": {"density": "@", "estimator": "antidiagonal", "order": "raster"},
        "adaptive top-p": {"top_p": "@", "min_density": 0.0, "max_density": 1.0},
    },
}
KNOBS = {"top_p": (0.0, 1.0)}


def method_selectors() -> list[Selector]:
    """One selector for each variant of each method."""
    found = []
    for method, config in METHODS.items():
        has_density = "density" in {field.name for field in dataclasses.fields(config)}
        default = {method: {"density": "@"} if has_density else {}}
        for name, settings in VARIANTS.get(method, default).items():
            asked = [field for field, value in settings.items() if value == "@"]
            shown = ", ".join(f"{field}={value}" for field, value in settings.items() if value != "@")
            found.append(
                Selector(
                    name=name,
                    kind="ours",
                    source=f"{config.__name__}({shown})",
                    select=partial(_select, method, settings),
                    knob=KNOBS.get(asked[0]) if asked else None,
                )
            )
    return found


def _select(method: str, settings: dict[str, Any], task: SelectorTask, knob: float, _: float) -> Answer:
    given = {field: knob if value == "@" else value for field, value in settings.items()}
    make: Callable[..., AttentionConfig] = METHODS[method]
    config = make(q_tile=task.q_tile, kv_tile=task.kv_tile, min_tokens=0, **given)
    tokens = task.ordered(config.order)
    mask = config.select(tokens.query, tokens.key, tokens.value, task.grid)
    return Answer(mask, tokens.order, tokens.key, tokens.value)
