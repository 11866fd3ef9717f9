"""The text form of static patterns, for configs and the command line."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

from fastdit.errors import ConfigError
from fastdit.selectors.static_patterns import (
    Dense,
    Diagonal,
    Frames,
    MultiDiagonal,
    Pattern,
    Radial,
    Sink,
    Skip,
    Stripe,
    Window,
)

_KINDS: tuple[type[Pattern], ...] = (Window, Diagonal, MultiDiagonal, Stripe, Radial, Frames, Sink, Skip, Dense)
PATTERNS: dict[str, type[Pattern]] = {kind.name: kind for kind in _KINDS}


def parse_pattern(pattern: Pattern | str) -> Pattern:
    """A pattern from its text form: `name[:values]`, several joined by `|`.

    Values are comma-separated, in the order of the pattern's arguments or as `argument=value`; what is left out takes
    its default: `"window:3,8,8"`, `"window:width=5"`, `"multi_diagonal|sink"`. A `Pattern` is returned as it is, and
    `parse_pattern(str(pattern)) == pattern`.

    Raises:
        ConfigError: Unknown name or argument, or a value out of range.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise ConfigError(f"pattern={pattern!r}: accepted is a text such as 'radial|sink', or a pattern")
    parts = [_parse_part(text.strip(), pattern) for text in pattern.split("|")]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined | part
    return joined


def _parse_part(text: str, whole: str) -> Pattern:
    name, _, values = text.partition(":")
    kind = PATTERNS.get(name.strip())
    if kind is None:
        raise ConfigError(f"pattern={whole!r}: {name!r} is unknown; accepted are {', '.join(PATTERNS)}, joined by '|'")
    fields = [field.name for field in dataclasses.fields(kind)]
    types = get_type_hints(kind)
    given: dict[str, int | float] = {}
    for place, word in enumerate(values.split(",") if values.strip() else []):
        key, _, number = word.rpartition("=")
        field = key.strip() or (fields[place] if place < len(fields) else "")
        if field not in fields or field in given:
            accepted = f"once each of {', '.join(fields)}" if fields else "no values"
            raise ConfigError(f"pattern={whole!r}: {word.strip()!r} does not fit {kind.name}; accepted is {accepted}")
        try:
            given[field] = types[field](number)
        except ValueError:
            raise ConfigError(
                f"pattern={whole!r}: {field}={number.strip()!r} is no number of type {types[field].__name__}"
            ) from None
    return kind(**given)
