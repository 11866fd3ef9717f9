"""The error tree. Every message says what was given, what is accepted and, where it helps, what to do.

FastDitError
├── InvalidInputError (ValueError)       a tensor or argument does not fit
│   └── ConfigError                      a setting is out of range
├── KernelUnavailableError               a kernel asked for by name cannot run here
├── UnsupportedModelError                no adapter for this pipeline, or a mode an adapter refuses
├── AlreadyEnabledError                  the pipeline is enabled already
├── NotEnabledError                      the pipeline is not enabled
├── InfeasibleError (ValueError)         a bound that no choice can meet
├── PlanError (ValueError)               a plan file is damaged, or for another model
├── ModelLoadError                       a model cannot be loaded
└── OutputError                          results cannot be written
"""

from __future__ import annotations

from fastdit_kernels import FastDitError, InvalidInputError, KernelUnavailableError

__all__ = [
    "AlreadyEnabledError",
    "ConfigError",
    "FastDitError",
    "InfeasibleError",
    "InvalidInputError",
    "KernelUnavailableError",
    "ModelLoadError",
    "NotEnabledError",
    "OutputError",
    "PlanError",
    "UnsupportedModelError",
]


class ConfigError(InvalidInputError):
    """A setting has a value outside its range, or settings contradict each other."""


class UnsupportedModelError(FastDitError, TypeError):
    """No adapter knows this pipeline or transformer, or it is used in a way the adapter refuses."""


class AlreadyEnabledError(FastDitError, RuntimeError):
    """`enable` was called on a pipeline that is enabled; call `disable` first."""


class NotEnabledError(FastDitError, RuntimeError):
    """`disable` was called on a pipeline that is not enabled."""


class InfeasibleError(FastDitError, ValueError):
    """A bound was asked for that no choice can meet; the message says what can be reached."""


class PlanError(FastDitError, ValueError):
    """A plan is damaged, of an unknown version, or made for another model or size; the message names the field."""


class ModelLoadError(FastDitError, RuntimeError):
    """A model folder or repository cannot be loaded as a Diffusers pipeline."""


class OutputError(FastDitError, RuntimeError):
    """Results cannot be written where they were asked for."""
