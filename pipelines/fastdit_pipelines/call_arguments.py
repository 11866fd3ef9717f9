"""Reading the arguments of a transformer call, whichever way the pipeline passed them."""

from __future__ import annotations

from typing import Any


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """An argument given by position or by name; `None` if it was not given.

    Args:
        args: Positional arguments of `forward`, without `self`.
        kwargs: Keyword arguments.
        position: Place of the argument among the parameters.
        name: Its name.
    """
    return args[position] if position < len(args) else kwargs.get(name)
