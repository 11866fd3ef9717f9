"""What one run remembers from step to step: the orders of each head, and masks that are reused."""

from __future__ import annotations

from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import ReusedMasks


class RunMemory:
    """Memory of the run in progress; nothing of one run reaches the next."""

    def __init__(self) -> None:
        self.orders = MaskCache()
        self.masks = ReusedMasks()
        self._run: int | None = None

    def begin(self, run: int) -> None:
        """Start over if `run` is a new one."""
        if run != self._run:
            self._run = run
            self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.orders.clear()
        self.masks.clear()
