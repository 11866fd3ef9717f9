"""Configs from plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.config.cached import CachedConfig
from fastdit.config.mixed import MixedConfig
from fastdit.config.pyramid import PyramidConfig
from fastdit.config.static import StaticConfig
from fastdit.errors import ConfigError
from fastdit.schedule import Schedule
from fastdit.validation import check_choice

METHODS: dict[str, type[AttentionConfig]] = {
    config.method: config for config in (AdaptiveConfig, PyramidConfig, StaticConfig, CachedConfig, MixedConfig)
}


def config_from_dict(data: dict[str, Any]) -> AttentionConfig:
    """The config that `AttentionConfig.to_dict` described; settings that are missing take their defaults.

    Args:
        data: Plain data, e.g. read from JSON, with `"method"`.

    Raises:
        ConfigError: Method or settings are unknown, or a value is out of range.
    """
    if not isinstance(data, dict) or "method" not in data:
        raise ConfigError(f"config {data!r}: accepted is a dict with 'method' and settings, as to_dict makes it")
    check_choice("method", data["method"], METHODS)
    kind = METHODS[data["method"]]
    known = {field.name for field in dataclasses.fields(kind)}
    settings = {name: value for name, value in data.items() if name != "method"}
    for name in settings:
        if name not in known:
            raise ConfigError(f"{name}: method {kind.method!r} has no such setting; its own are {sorted(known)}")
    return kind(**{name: _restored(name, value) for name, value in settings.items()})


def _restored(name: str, value: Any) -> Any:
    """JSON has no tuples and no configs: lists become tuples, dicts what they describe."""
    if isinstance(value, (list, tuple)):
        return tuple(_restored(name, item) for item in value)
    if not isinstance(value, dict):
        return value
    if name == "schedule":
        fields = {field.name for field in dataclasses.fields(Schedule)}
        if value.keys() - fields:
            raise ConfigError(f"schedule={value!r}: accepted are {', '.join(sorted(fields))}")
        return Schedule(**{key: _restored(key, item) for key, item in value.items()})
    return config_from_dict(value)
