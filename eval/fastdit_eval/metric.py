"""What a fidelity metric is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastdit.errors import FastDitError
from fastdit_eval.clips import Clip


class MetricUnavailableError(FastDitError, RuntimeError):
    """A metric cannot be computed here; the message says why. It is reported, never replaced by another one."""


@dataclass(frozen=True)
class Metric:
    """One number per frame of a pair of clips.

    Args:
        name: Key in results.
        implementation: The exact computation, for results.
        higher_is_better: Direction.
        per_frame: Reference and other clip, of equal shape, to the value of each frame; may raise
            `MetricUnavailableError`.
    """

    name: str
    implementation: str
    higher_is_better: bool
    per_frame: Callable[[Clip, Clip], list[float]]
