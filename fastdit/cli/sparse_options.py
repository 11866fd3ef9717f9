"""The settings of sparse methods as options of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from fastdit.config import (
    METHODS,
    AdaptiveConfig,
    AttentionConfig,
    CachedConfig,
    MixedConfig,
    config_from_file,
)
from fastdit.errors import ConfigError
from fastdit.plan import Plan
from fastdit.plan_config import PlanConfig
from fastdit.schedule import Schedule
from fastdit.validation import check_choice


def count_or_fraction(_: Any, tokens: Sequence[Token]) -> int | float:
    """`4` is a count and `0.2` a fraction; Cyclopts would round the latter to an int."""
    text = tokens[0].value
    return int(text) if text.lstrip("+-").isdigit() else float(text)


@Parameter(name="*", group="Sparse attention")
@dataclass(frozen=True, kw_only=True)
class SparseOptions:
    """Settings of the method; unset ones take the bundled model's, else the method's defaults.

    Args:
        config: JSON file with the method and all of its settings, e.g. {"method": "pyramid", "level_shares":
            {"0": 0.1, "3": 0.2}}, or a table of heads of the method mixed; instead of --method and the options below.
        plan: File that fastdit search made for this model, or the name of a bundled plan (see fastdit models);
            instead of --method and all other options here.
        top_p: Share of the estimated attention mass to keep per query tile (adaptive).
        min_density: Least share of key tiles per query tile (adaptive).
        max_density: Largest share of key tiles per query tile (adaptive).
        density: Share of key tiles (pyramid); fixed, instead of the three above (adaptive).
        complement: Keys that are not kept are dropped ("none"), pooled ("all"), or either per head ("auto") (adaptive).
        rho: Weigh what is kept by its share of the true mass (adaptive).
        num_levels: Pooling levels, level 0 included (pyramid).
        search: "all" scores all tiles; "top_down" opens the best ones level by level, for very long videos (pyramid).
        beam: Tiles of each level that top_down opens, per query tile (pyramid).
        pattern: What to keep, e.g. "radial|sink" or "window:3,9,9|frames:2" (static).
        source: Method that builds the masks, by default adaptive; its settings are given beside it (cached).
        refresh_every: Steps after which masks are built anew (cached).
        check_every: Steps from one test of the masks to the next (cached).
        min_recall: Share of its first recall that a head's mask must keep to be reused (cached).
        mass: What masks are built from: source or exact (cached).
        text_density: Share of text tiles kept, with the exact mass (cached).
        dense_steps: Leading dense steps: a fraction such as 0.2, or a count such as 4.
        dense_layers: Layers that stay dense, counted from 0, -1 the last; --empty-dense-layers for none.
        order: Token order: gilbert, raster, space_major or frame_gilbert; or score, for keys alone, or auto, for
            the best of these per head (pyramid and adaptive).
        min_tokens: Sequences with fewer tokens stay dense.
        first_order: Pooled tiles follow each query to first order, or have their mean values alone.
        shift_tiles: Tiles lie elsewhere in each step, so that errors of pooled ones do not add up.
        implementation: Kernel: auto, triton, flex, torch or reference.
    """

    config: Path | None = None
    plan: Path | None = None
    top_p: float | None = None
    min_density: float | None = None
    max_density: float | None = None
    density: float | None = None
    complement: str | None = None
    rho: bool | None = None
    num_levels: int | None = None
    search: str | None = None
    beam: int | None = None
    pattern: str | None = None
    source: str | None = None
    refresh_every: int | None = None
    check_every: int | None = None
    min_recall: float | None = None
    mass: str | None = None
    text_density: float | None = None
    dense_steps: Annotated[int | float | None, Parameter(converter=count_or_fraction)] = None
    dense_layers: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative_iterable="empty-")] = None
    order: str | None = None
    min_tokens: int | None = None
    first_order: bool | None = None
    shift_tiles: bool | None = None
    implementation: str | None = None

    def choose_method(self, method: str | None, default: str) -> str:
        """The method: what was given, what the file of `config` has, "plan", or `default`.

        Raises:
            ConfigError: It was given beside a file, or two files were given.
        """
        if self.config is not None and self.plan is not None:
            raise ConfigError("config with --plan: each says the method and all of its settings, give one of them")
        for name in ("config", "plan"):
            if getattr(self, name) is not None and method is not None:
                raise ConfigError(f"method={method!r} with --{name}: the file says the method, leave out --method")
        if self.plan is not None:
            return PlanConfig.method
        if self.config is not None:
            return config_from_file(self.config).method
        return default if method is None else method

    def build(self, method: str, defaults: dict[str, Any]) -> AttentionConfig:
        """The config of `method` with these settings over `defaults`; or that of the file, which stands alone.

        Raises:
            ConfigError: A setting belongs to another method, or has a value out of range; or the file is not accepted.
            PlanError: The plan cannot be read.
        """
        if self.config is not None or self.plan is not None:
            file = "config" if self.plan is None else "plan"
            for field in dataclasses.fields(self):
                if field.name != file and getattr(self, field.name) is not None:
                    value = getattr(self, field.name)
                    hint = "write all settings into the file" if file == "config" else "the plan says all settings"
                    raise ConfigError(f"{field.name}={value!r} with --{file}: {hint}")
            if self.plan is not None:
                return PlanConfig(plan=load_plan(self.plan))
            assert self.config is not None, "one of the two is given"
            return config_from_file(self.config)
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        source = given.get("source", defaults.get("source", AdaptiveConfig.method))
        if MixedConfig.method in (method, source):
            raise ConfigError(
                "method='mixed' is a table of heads, which options cannot give: write it into a file for --config"
            )
        if method != CachedConfig.method:
            return _config(method, given, defaults)
        check_choice("source", source, [name for name in METHODS if name not in (method, MixedConfig.method)])
        own = {name: (defaults | given)[name] for name in own_settings(method) & (defaults | given).keys()}
        rest = {name: value for name, value in given.items() if name not in own}
        others = {name: value for name, value in defaults.items() if name not in own}
        return CachedConfig(**{**own, "source": _config(source, rest, others)})


DEFAULT_SPARSE = SparseOptions()


def load_plan(given: Path) -> Plan:
    """The plan of a file, or the bundled one of this name.

    Raises:
        PlanError: It cannot be read.
    """
    from fastdit_pipelines.bundled_models import plan_file

    return Plan.load(plan_file(given))


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


def check_method(method: str, sparse: SparseOptions, *others: str) -> None:
    """Accept a sparse method by its name, those of `others`, and the plan of `--plan`."""
    if sparse.plan is None:
        check_choice("method", method, (*others, *METHODS))
