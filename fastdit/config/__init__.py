"""What users choose: one frozen config per method."""

from __future__ import annotations

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.config.cached import CachedConfig
from fastdit.config.pyramid import PyramidConfig
from fastdit.config.static import StaticConfig

METHODS: dict[str, type[AttentionConfig]] = {
    config.method: config for config in (AdaptiveConfig, PyramidConfig, StaticConfig, CachedConfig)
}

__all__ = ["METHODS", "AdaptiveConfig", "AttentionConfig", "CachedConfig", "PyramidConfig", "StaticConfig"]
