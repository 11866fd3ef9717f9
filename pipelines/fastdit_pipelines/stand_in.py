"""What the processors of all families share: the original, the way into the session, and what copies get."""

from __future__ import annotations

from typing import Any

from fastdit.attend import DenseAttention, sdpa
from fastdit.layer_slot import LayerSlot


class StandIn:
    """A processor that stands in for the one it was made from; a family adds `__call__`.

    A copy of a model, by `copy.deepcopy` or pickle, gets the original processors: only the model that was enabled
    belongs to the session.

    Args:
        original: The processor it stands in for; runs every dense call.
        slot: This layer's view of the session.
    """

    def __init__(self, original: Any, slot: LayerSlot) -> None:
        self.original = original
        self.slot = slot
        # Compiled code leaves the choice to the session, which then needs the dense attention too.
        slot.dense_backend = self.dense_backend

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.original,)

    def dense_backend(self) -> DenseAttention:
        """What the original attends with: PyTorch's attention, unless the family lets users choose."""
        return sdpa


def _itself(original: Any) -> Any:
    return original
