"""What users choose: one frozen config per method."""

from __future__ import annotations

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.config.pyramid import PyramidConfig

METHODS: dict[str, type[AttentionConfig]] = {config.method: config for config in (AdaptiveConfig, PyramidConfig)}

__all__ = ["METHODS", "AdaptiveConfig", "AttentionConfig", "PyramidConfig"]
