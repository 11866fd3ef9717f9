"""The door for model families: the protocol an adapter follows and the registry that finds it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from torch import nn

from fastdit.errors import UnsupportedModelError
from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "fastdit.pipelines"


@runtime_checkable
class PipelineAdapter(Protocol):
    """What fastdit must know about a model family. Registered under the entry-point group `fastdit.pipelines`."""

    family: str
    transformer_classes: tuple[str, ...]

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """Path and module of every video self-attention layer, in order; each module has a `processor`."""
        ...

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Geometry of a call, from the arguments of the transformer's `forward`."""
        ...

    def processor(self, original: Any, slot: LayerSlot) -> Any:
        """Our processor for a layer; calls `original` whenever the slot wants dense attention."""
        ...

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Let `session` hear of context, calls and run ends of transformer `number`; returns the way back."""
        ...


def load_adapters() -> Iterator[PipelineAdapter]:
    """All adapters of the installed packages; one that cannot be imported is skipped with a warning."""
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        try:
            adapter = entry.load()()
        except ImportError as error:
            logger.warning("adapter %r is skipped, it cannot be imported: %s", entry.name, error)
            continue
        if not isinstance(adapter, PipelineAdapter):
            raise UnsupportedModelError(f"entry point {entry.name!r} is not a PipelineAdapter: {adapter!r}")
        yield adapter


def find_adapter(transformer: nn.Module) -> PipelineAdapter:
    """The adapter for a transformer, by class name (base classes included, nearest first).

    Raises:
        UnsupportedModelError: Names the class given and those supported.
    """
    adapters = {name: adapter for adapter in load_adapters() for name in adapter.transformer_classes}
    for base in type(transformer).__mro__:
        if base.__name__ in adapters:
            return adapters[base.__name__]
    raise UnsupportedModelError(
        f"{type(transformer).__name__} is not supported; supported are {', '.join(sorted(adapters)) or 'none'}"
    )
