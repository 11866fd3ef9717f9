"""Errors of the kernel room. `fastdit.errors` hangs them into the tree under `FastDitError`."""

from __future__ import annotations


class FastDitError(Exception):
    """Root of every error this project raises on purpose."""


class InvalidInputError(FastDitError, ValueError):
    """An argument has a shape, dtype or value that is not accepted."""


class KernelUnavailableError(FastDitError, RuntimeError):
    """The implementation asked for by name cannot run here; the message says why."""
