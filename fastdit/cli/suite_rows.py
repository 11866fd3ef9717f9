"""The rows of `fastdit eval suite`: static patterns, ladders of densities, cached variants, plans and config files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fastdit.cli.sparse_options import SparseOptions, count_or_fraction, load_plan, own_settings
from fastdit.config import AdaptiveConfig, AttentionConfig, CachedConfig, PyramidConfig, StaticConfig, config_from_file
from fastdit.errors import ConfigError
from fastdit.plan import Plan
from fastdit.plan_config import PlanConfig
from fastdit.schedule import Schedule

Defaults = Callable[[str], dict[str, Any]]


@Parameter(name="*", group="Methods")
@dataclass(frozen=True, kw_only=True)
class LadderOptions:
    """Which methods are compared, and settings of all of them; unset ones take the bundled model's.

    Args:
        methods: Rows, or kinds of rows such as pyramid; all if not given. --list shows them.
        plan: Plans that fastdit search made for this model; each becomes a row. Those that ship with the model for the
            size of the call are rows without being named.
        config: JSON files with a method and all of its settings; each becomes a row.
        densities: Shares of key tiles that adaptive and pyramid take in turn; the middle one is that of cached.
        patterns: Patterns of static.
        dense_steps: Leading dense steps: a fraction such as 0.2, or a count such as 4.
        dense_layers: Layers that stay dense, counted from 0, -1 the last; --empty-dense-layers for none.
        min_tokens: Sequences with fewer tokens stay dense.
        implementation: Kernel: auto, triton, flex, torch or reference.
    """

    methods: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    plan: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = ()
    config: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = ()
    densities: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.1, 0.2, 0.4)
    patterns: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (
        "radial|sink",
        "window|sink",
        "multi_diagonal|sink",
    )
    dense_steps: Annotated[int | float | None, Parameter(converter=count_or_fraction)] = None
    dense_layers: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative_iterable="empty-")] = None
    min_tokens: int | None = None
    implementation: str | None = None

    def shared(self) -> dict[str, Any]:
        """Settings of all methods that were given."""
        names = ("dense_steps", "dense_layers", "min_tokens", "implementation")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def build_rows(options: LadderOptions, defaults: Defaults, plans: Mapping[str, Plan]) -> dict[str, AttentionConfig]:
    """Configs by the name of their row.

    Args:
        options: What was asked for.
        defaults: Settings of a method that suit the model, by the method's name.
        plans: Rows of the ladder, too, by name.

    Raises:
        ConfigError: A name is unknown or taken twice, or a setting is out of range.
        PlanError: A plan cannot be read.
    """
    if not options.densities:
        raise ConfigError("densities: accepted is at least one fraction, e.g. 0.1 0.2 0.4")
    rows = _without_repeats(_ladder(options, defaults))
    for name, plan in plans.items():
        _add(rows, _row_name("plan", name), PlanConfig(plan=plan))
    chosen = rows if not options.methods else _choose(rows, options.methods)
    for path in options.plan:
        name, config = _row_name("plan", path.stem), PlanConfig(plan=load_plan(path))
        if chosen.get(name) != config:
            _add(chosen, name, config)
    for path in options.config:
        _add(chosen, _row_name("config", path.stem), config_from_file(path))
    return chosen


def _ladder(options: LadderOptions, defaults: Defaults) -> Iterable[tuple[str, AttentionConfig]]:
    shared = options.shared()

    def build(method: str, known: dict[str, Any], **given: Any) -> AttentionConfig:
        return SparseOptions(**shared, **given).build(method, known)

    for pattern in options.patterns:
        static = StaticConfig.method
        yield _row_name(static, pattern), build(static, defaults(static), pattern=pattern)
    for method in (AdaptiveConfig.method, PyramidConfig.method):
        for density in options.densities:
            yield f"{method}-{density:g}", build(method, defaults(method), density=density)
        yield f"{method}-default", build(method, defaults(method))
    cached = CachedConfig.method
    middle = sorted(options.densities)[len(options.densities) // 2]
    for source in (AdaptiveConfig.method, PyramidConfig.method):
        known = _defaults_of_cached(defaults, source)
        yield f"{cached}-{source}-{middle:g}", build(cached, known, source=source, density=middle)
    yield f"{cached}-default", build(cached, defaults(cached))
    # The exact mass takes no estimator and no order of its own: the schedule is all that the model has to say.
    known = {name: value for name, value in defaults(cached).items() if name in _schedule_fields()}
    given = {"source": AdaptiveConfig.method, "mass": "exact", "density": middle}
    yield f"{cached}-exact-{middle:g}", build(cached, known, **given)


def _defaults_of_cached(defaults: Defaults, source: str) -> dict[str, Any]:
    """What suits the model: of the source its own settings, of cached those of caching and the schedule."""
    kept = own_settings(CachedConfig.method) | _schedule_fields()
    own = {name: value for name, value in defaults(CachedConfig.method).items() if name in kept and name != "source"}
    return {**defaults(source), **own}


def _schedule_fields() -> set[str]:
    return {field.name for field in dataclasses.fields(Schedule)}


def _without_repeats(rows: Iterable[tuple[str, AttentionConfig]]) -> dict[str, AttentionConfig]:
    """Rows whose settings no earlier row has: what a model takes by default may be a step of the ladder."""
    found: dict[str, AttentionConfig] = {}
    for name, config in rows:
        if config.to_dict() not in [other.to_dict() for other in found.values()]:
            _add(found, name, config)
    return found


def _choose(rows: dict[str, AttentionConfig], names: Sequence[str]) -> dict[str, AttentionConfig]:
    kinds = {row.split("-", 1)[0] for row in rows}
    for name in names:
        if name not in rows and name not in kinds:
            accepted = ", ".join([*sorted(kinds), *rows])
            raise ConfigError(f"methods: {name!r}: accepted are {accepted}")
    return {row: config for row, config in rows.items() if row in names or row.split("-", 1)[0] in names}


def _add(rows: dict[str, AttentionConfig], name: str, config: AttentionConfig) -> None:
    if name in rows:
        raise ConfigError(f"two rows would be called {name!r}: give files and patterns of different names")
    rows[name] = config


def _row_name(kind: str, text: str) -> str:
    """`kind-text` in letters that do as the name of a folder."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9._]+', '-', text).strip('-.') or 'unnamed'}"[:80]
