"""What users choose: one frozen config per method."""

from __future__ import annotations

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.config.cached import CachedConfig
from fastdit.config.mixed import HeadGroup, MixedConfig
from fastdit.config.plain import METHODS, config_from_dict, config_from_file
from fastdit.config.pyramid import PyramidConfig
from fastdit.config.static import StaticConfig

__all__ = [
    "METHODS",
    "AdaptiveConfig",
    "AttentionConfig",
    "CachedConfig",
    "HeadGroup",
    "MixedConfig",
    "PyramidConfig",
    "StaticConfig",
    "config_from_dict",
    "config_from_file",
]
