"""Checks shared by the frozen configs: one line per field, one wording for all."""

from __future__ import annotations

import math
from collections.abc import Collection

from fastdit.errors import ConfigError


def check_fraction(name: str, value: float) -> None:
    """Accept a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value!r}: accepted is a fraction between 0 and 1")


def check_count(name: str, value: int, minimum: int = 0) -> None:
    """Accept an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name}={value!r}: accepted is an integer of at least {minimum}")


def check_positive(name: str, value: float) -> None:
    """Accept a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < math.inf:
        raise ConfigError(f"{name}={value!r}: accepted is a finite number above 0")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Accept one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: accepted are {', '.join(map(repr, choices))}")
