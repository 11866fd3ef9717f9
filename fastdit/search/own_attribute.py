"""An attribute of one object alone, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def own_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The object itself has an attribute inside, in front of that of its class; what it had itself comes back.

    Not by `setattr`, which modules and pipelines treat in ways of their own.

    Args:
        owner: The object.
        name: Of the attribute.
        value: Inside.
    """
    missing = name not in owner.__dict__
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if missing:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = before
