"""Sparse attention for video diffusion transformers in Hugging Face Diffusers: one line on, one line off."""

from typing import TYPE_CHECKING

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
    InfeasibleError,
    InvalidInputError,
    KernelUnavailableError,
    ModelLoadError,
    NotEnabledError,
    OutputError,
    PlanError,
    UnsupportedModelError,
)
from fastdit.grid import VideoGrid
from fastdit.guard import RecallGuard
from fastdit.plan import Plan
from fastdit.schedule import Schedule
from fastdit.session import Session
from fastdit.sparse_attention import AttentionStats, sparse_attention

# The package is a verb as well, which type checkers do not know of modules.
if TYPE_CHECKING:
    from fastdit.search.find_plan import find_plan as search
else:
    from fastdit import search

__version__ = "0.1.0"

__all__ = [
    "AdaptiveConfig",
    "AlreadyEnabledError",
    "AttentionConfig",
    "AttentionStats",
    "CachedConfig",
    "ConfigError",
    "FastDitError",
    "InfeasibleError",
    "InvalidInputError",
    "KernelUnavailableError",
    "MixedConfig",
    "ModelLoadError",
    "NotEnabledError",
    "OutputError",
    "PipelineAdapter",
    "Plan",
    "PlanError",
    "PyramidConfig",
    "RecallGuard",
    "Schedule",
    "Session",
    "StaticConfig",
    "UnsupportedModelError",
    "VideoGrid",
    "__version__",
    "config_from_dict",
    "disable",
    "enable",
    "search",
    "sparse_attention",
]
