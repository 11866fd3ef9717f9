"""The settings of sparse methods as options of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter, Token

from fastdit.config import METHODS, AdaptiveConfig, AttentionConfig, CachedConfig, MixedConfig
from fastdit.errors import ConfigError
from fastdit.schedule import Schedule
from fastdit.validation import check_choice


def _count_or_fraction(_: Any, tokens: Sequence[Token]) -> int | float:
    """`4` is a count and `0.2` a fraction; Cyclopts would round the latter to an int."""
    text = tokens[0].value
    return int(text) if text.lstrip("+-").isdigit() else float(text)


@Parameter(name="*", group="Sparse attention")
@dataclass(frozen=True, kw_only=True)
class SparseOptions:
    """Settings of the method; unset ones take the bundled model's, else the method's defaults.

    Args:
        top_p: Share of the estimated attention mass to keep per query tile (adaptive).
        min_density: Least share of key tiles per query tile (adaptive).
        max_density: Largest share of key tiles per query tile (adaptive).
        density: Share of key tiles (pyramid); fixed, instead of the three above (adaptive).
        complement: What becomes of keys that are not kept: none (dropped), all (pooled) or auto, per head (adaptive).
        rho: Weigh what is kept by its share of the true mass (adaptive).
        num_levels: Pooling levels, level 0 included (pyramid).
        pattern: What to keep, e.g. "radial|sink" or "window:3,9,9|frames:2" (static).
        source: Method that builds the masks, by default adaptive; its settings are given beside it (cached).
        refresh_every: Steps after which masks are built anew (cached).
        check_every: Steps from one test of the masks to the next (cached).
        min_recall: Share of its first recall that a head's mask must keep to be reused (cached).
        mass: What masks are built from: source or exact (cached).
        text_density: Share of text tiles kept, with the exact mass (cached).
        dense_steps: Leading dense steps: a fraction such as 0.2, or a count such as 4.
        dense_layers: Layers that stay dense.
        order: Token order: gilbert, raster, space_major or frame_gilbert; score or auto order keys alone (pyramid,
            which orders keys alone in any case, and adaptive).
        min_tokens: Shorter sequences stay dense.
        implementation: Kernel: auto, triton, flex, torch or reference.
    """

    top_p: float | None = None
    min_density: float | None = None
    max_density: float | None = None
    density: float | None = None
    complement: str | None = None
    rho: bool | None = None
    num_levels: int | None = None
    pattern: str | None = None
    source: str | None = None
    refresh_every: int | None = None
    check_every: int | None = None
    min_recall: float | None = None
    mass: str | None = None
    text_density: float | None = None
    dense_steps: Annotated[int | float | None, Parameter(converter=_count_or_fraction)] = None
    dense_layers: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True)] = None
    order: str | None = None
    min_tokens: int | None = None
    implementation: str | None = None

    def build(self, method: str, defaults: dict[str, Any]) -> AttentionConfig:
        """The config of `method` with these settings over `defaults`.

        Raises:
            ConfigError: A setting belongs to another method, or has a value out of range.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        source = given.get("source", defaults.get("source", AdaptiveConfig.method))
        if MixedConfig.method in (method, source):
            raise ConfigError(
                "method='mixed' is a table of heads, which options cannot give: use fastdit.MixedConfig in Python"
            )
        if method != CachedConfig.method:
            return _config(method, given, defaults)
        check_choice("source", source, [name for name in METHODS if name not in (method, MixedConfig.method)])
        own = {name: (defaults | given)[name] for name in own_settings(method) & (defaults | given).keys()}
        rest = {name: value for name, value in given.items() if name not in own}
        others = {name: value for name, value in defaults.items() if name not in own}
        return CachedConfig(**{**own, "source": _config(source, rest, others)})


def _config(method: str, given: dict[str, Any], defaults: dict[str, Any]) -> AttentionConfig:
    accepted = {field.name for kind in (METHODS[method], Schedule) for field in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in accepted:
            raise ConfigError(
                f"{name}={value!r}: method {method!r} has no such setting; "
                f"its own are {', '.join(sorted(own_settings(method))) or 'none'}"
            )
    settings = defaults | given
    schedule = {name: settings.pop(name) for name in ("dense_steps", "dense_layers") if name in settings}
    return METHODS[method](schedule=Schedule(**schedule), **settings)


def own_settings(method: str) -> set[str]:
    """Settings that a method has beside those common to all."""
    common = {field.name for field in dataclasses.fields(AttentionConfig)}
    return {field.name for field in dataclasses.fields(METHODS[method])} - common
