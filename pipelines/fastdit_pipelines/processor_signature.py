"""The check made at `enable`: is a layer's processor the one an adapter was written for?"""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from fastdit.errors import UnsupportedModelError


def check_signature(original: Any, class_names: tuple[str, ...], parameters: tuple[str, ...]) -> None:
    """Refuse a processor whose class or call signature is not the one that the stand-in reproduces.

    A stand-in computes what its original computes, so a processor of another class (a user's own, or one of a future
    Diffusers) must not be replaced silently.

    Args:
        original: Processor found in the layer.
        class_names: Names of the accepted classes, base classes of `original` included.
        parameters: Names of the parameters of `__call__` in order, without `self`.

    Raises:
        UnsupportedModelError: Names what was found, what is accepted, and the version of Diffusers.
    """
    names = {base.__name__ for base in type(original).__mro__}
    if names.isdisjoint(class_names):
        raise UnsupportedModelError(
            f"attention processor {type(original).__name__} is not known: accepted are {', '.join(class_names)}; "
            "put the pipeline's own processor back before fastdit.enable(pipe)"
        )
    found = tuple(inspect.signature(type(original).__call__).parameters)[1:]
    if found != parameters:
        raise UnsupportedModelError(
            f"{type(original).__name__} of diffusers {diffusers.__version__} takes ({', '.join(found)}), known is "
            f"({', '.join(parameters)}): this version of Diffusers is not supported yet"
        )
