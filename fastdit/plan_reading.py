"""Plain data of plan files: strict JSON, digests, and faults in one line."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from fastdit.errors import PlanError


def hash_config(config: dict[str, Any]) -> str:
    """SHA-256 of a transformer's configuration, without names that start with `_` (paths and library versions)."""
    return sha256({key: value for key, value in config.items() if not key.startswith("_")})


def sha256(data: Any) -> str:
    """Hash of plain data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(content: bytes, name: str) -> dict[str, Any]:
    """Plain data; refuses what JSON leaves open: repeated keys, NaN, infinities."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(items)
        if len(data) < len(items):
            twice = next(key for key, _ in items if sum(other == key for other, _ in items) > 1)
            raise ValueError(f"{twice}: given twice")
        return data

    def constant(text: str) -> Any:
        raise ValueError(f"{text}: accepted are finite numbers")

    try:
        data = json.loads(content.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan {name!r} is not readable JSON: {_one_line(str(error))}") from error
    if not isinstance(data, dict):
        raise PlanError(f"plan {name!r} holds a {type(data).__name__}: accepted is a JSON object")
    return data


def describe_fault(error: ValidationError) -> str:
    """The first fault with its field, and how many there are."""
    faults = error.errors(include_url=False, include_input=False)
    first = faults[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return _one_line(f"{place}: {message}{more}" if place else message + more)


def _one_line(text: str) -> str:
    """Contents of a damaged file must not break the message."""
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:500] + "..."
