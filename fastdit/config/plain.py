"""Configs from plain data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
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

# Settings that are tables {level: fraction}.
LEVEL_TABLES = ("level_shares", "level_mass", "min_similarity")
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
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise ConfigError(f"config {data!r}: accepted is a dict with 'method' and settings, as to_dict makes it")
    check_choice("method", data["method"], METHODS)
    kind = METHODS[data["method"]]
    known = {field.name for field in dataclasses.fields(kind)}
    settings = {name: value for name, value in data.items() if name != "method"}
    for name in settings:
        if name not in known:
            raise ConfigError(f"{name}: method {kind.method!r} has no such setting; its own are {sorted(known)}")
    return kind(**{name: _restored(name, value) for name, value in settings.items()})


def config_from_file(path: Path) -> AttentionConfig:
    """The config that a JSON file describes, as `config_from_dict` takes it.

    Raises:
        ConfigError: The file cannot be read, is no JSON, or describes no config; the message names the file.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    try:
        return config_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _restored(name: str, value: Any) -> Any:
    """JSON has no tuples, no configs and no number as a key: lists become tuples, dicts what they describe."""
    if isinstance(value, (list, tuple)):
        return tuple(_restored(name, item) for item in value)
    if not isinstance(value, dict):
        return value
    if name in LEVEL_TABLES:
        if not all(str(level).isdigit() for level in value):
            raise ConfigError(f'{name}={value!r}: accepted is a table of levels such as {{"0": 0.1, "3": 0.2}}')
        return tuple((int(level), share) for level, share in value.items())
    if name == "schedule":
        fields = {field.name for field in dataclasses.fields(Schedule)}
        if value.keys() - fields:
            raise ConfigError(f"schedule={value!r}: accepted are {', '.join(sorted(fields))}")
        return Schedule(**{key: _restored(key, item) for key, item in value.items()})
    return config_from_dict(value)
