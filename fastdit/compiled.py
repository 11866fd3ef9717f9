"""The door from compiled code into a session: two opaque operators, so that all layers and steps share one graph.

Compiled code must not read what changes from call to call: each value read would become a guard, and each change a
new graph. So a layer names itself by a tensor, which is data to the compiler, and the operators look up the Python
objects when they run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

from fastdit.grid import VideoGrid

_numbers = count()
# What the operators find by number: layer slots and sessions. Weak, so that nothing is kept alive by having a number.
_objects: WeakValueDictionary[int, Any] = WeakValueDictionary()

_FIELDS = tuple(field.name for field in dataclasses.fields(VideoGrid))
_FLAGS = tuple(field.name for field in dataclasses.fields(VideoGrid) if isinstance(field.default, bool))


def register(target: Any) -> torch.Tensor:
    """Give an object a number.

    Args:
        target: A `LayerSlot` or a `Session`.

    Returns:
        int64 `[2]` on the CPU: the number, and a counter that `begin_forward` raises.
    """
    number = next(_numbers)
    _objects[number] = target
    return torch.tensor([number, 0], dtype=torch.int64, device="cpu")


@torch.library.custom_op("fastdit::begin_forward", mutates_args=("session",))
def begin_forward(
    session: torch.Tensor, transformer: int, geometry: Sequence[int], text_lengths: torch.Tensor | None = None
) -> None:
    """`Session.begin_forward` from compiled code; the session's tensor is changed so that the call is not dropped.

    Args:
        session: What `register` returned for the session.
        transformer: Number of the transformer in the pipeline.
        geometry: From `pack_geometry`.
        text_lengths: Valid text tokens `[B]`, read here, so that compiled code does not depend on them.
    """
    session[1] += 1
    _objects[int(session[0])].begin_forward(transformer, unpack_geometry(geometry), text_lengths)


@begin_forward.register_fake
def _(
    session: torch.Tensor, transformer: int, geometry: Sequence[int], text_lengths: torch.Tensor | None = None
) -> None:
    return None


@torch.library.custom_op("fastdit::attend", mutates_args=())
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: torch.Tensor,
    session: torch.Tensor,
    text_lengths: Sequence[int] | None = None,
) -> torch.Tensor:
    """`LayerSlot.attend_either` from compiled code.

    Args:
        query: `[B, S, H, D]`.
        key: `[B, S, H, D]`.
        value: `[B, S, H, D]`.
        layer: What `register` returned for the layer's slot.
        session: The same for the session; read only so that this runs after `begin_forward`.
        text_lengths: As in `LayerSlot.attend`.
    """
    out: torch.Tensor = _objects[int(layer[0])].attend_either(query, key, value, text_lengths)
    # The compiler relies on the layout that the fake kernel promises.
    return out.contiguous()


@attend.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: torch.Tensor,
    session: torch.Tensor,
    text_lengths: Sequence[int] | None = None,
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def pack_geometry(grid: VideoGrid) -> list[int]:
    """A grid as the numbers that an operator takes, in the order of its fields."""
    # Flags become numbers by addition, which the compiler follows for sizes that it keeps symbolic too.
    return [0 + getattr(grid, name) for name in _FIELDS]


def unpack_geometry(geometry: Sequence[int]) -> VideoGrid:
    """The grid that `pack_geometry` was given."""
    values: dict[str, Any] = dict(zip(_FIELDS, geometry, strict=True))
    return VideoGrid(**{**values, **{name: bool(values[name]) for name in _FLAGS}})
