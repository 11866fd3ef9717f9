"""A bounded store for what depends on geometry alone, and for masks that are reused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from fastdit_kernels import BlockMask

Entry = TypeVar("Entry", torch.Tensor, BlockMask)


class MaskCache:
    """Least-recently-used cache of tensors and masks, bounded in bytes and in entries.

    Args:
        max_bytes: Bound; the oldest entries go first. A single larger entry is built but not kept.
        max_entries: Likewise of their number: a tensor of a few numbers takes far more than its bytes.
    """

    def __init__(self, max_bytes: int = 256 << 20, max_entries: int = 8192) -> None:
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self._entries: OrderedDict[Hashable, torch.Tensor | BlockMask] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._bytes

    def get(self, key: Hashable, build: Callable[[], Entry]) -> Entry:
        """The entry of `key`, built on the first request."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]  # type: ignore[return-value]  # a key always maps to what its build returned
        entry = build()
        self._entries[key] = entry
        self._bytes += _size(entry)
        while self._bytes > self.max_bytes or len(self._entries) > self.max_entries:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _size(oldest)
        return entry

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._bytes = 0


def _size(entry: torch.Tensor | BlockMask) -> int:
    tensors = [entry] if isinstance(entry, torch.Tensor) else [entry.indices, entry.counts]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
