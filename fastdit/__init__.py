"""Sparse attention for video diffusion transformers in Hugging Face Diffusers: one line on, one line off."""

from fastdit.adapters import PipelineAdapter
from fastdit.api import disable, enable
from fastdit.config import (
    AdaptiveConfig,
    AttentionConfig,
    CachedConfig,
    MixedConfig,
    PyramidConfig,
    StaticConfig,
    config_from_dict,
)
from fastdit.errors import (
    AlreadyEnabledError,
    ConfigError,
    FastDitError,
    InvalidInputError,
    KernelUnavailableError,
    ModelLoadError,
    NotEnabledError,
    OutputError,
    UnsupportedModelError,
)
from fastdit.grid import VideoGrid
from fastdit.schedule import Schedule
from fastdit.session import Session
from fastdit.sparse_attention import AttentionStats, sparse_attention

__version__ = "0.1.0"

__all__ = [
    "AdaptiveConfig",
    "AlreadyEnabledError",
    "AttentionConfig",
    "AttentionStats",
    "CachedConfig",
    "ConfigError",
    "FastDitError",
    "InvalidInputError",
    "KernelUnavailableError",
    "MixedConfig",
    "ModelLoadError",
    "NotEnabledError",
    "OutputError",
    "PipelineAdapter",
    "PyramidConfig",
    "Schedule",
    "Session",
    "StaticConfig",
    "UnsupportedModelError",
    "VideoGrid",
    "__version__",
    "config_from_dict",
    "disable",
    "enable",
    "sparse_attention",
]
