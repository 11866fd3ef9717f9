"""Where the time of sparse attention goes: named parts of a call, timed only while somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from typing import Self

import torch

SPANS = ("selection", "gather", "kernel")


class SpanTimer:
    """Context manager that adds up the seconds of every span inside it, in this thread.

    On a GPU every span waits for what came before it, so what is timed so is not to be timed as a whole.

    Attributes:
        seconds: By name; a span inside another one counts for itself alone.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []
        self._token: Token[SpanTimer | None] | None = None

    def __enter__(self) -> Self:
        self._token = _timer.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None, "entered before"
        _timer.reset(self._token)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time one span."""
        start = now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole, inside = now() - start, self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - inside
            if self._inner:
                self._inner[-1] += whole


# Empty but inside `with SpanTimer()`: whoever measures need not be handed through every function.
_timer: ContextVar[SpanTimer | None] = ContextVar("fastdit_span_timer", default=None)


def span(name: str) -> AbstractContextManager[None]:
    """A part of a sparse attention call: `"selection"`, `"gather"` or `"kernel"`; free where nobody measures."""
    if torch.compiler.is_compiling():
        return nullcontext()
    timer = _timer.get()
    return nullcontext() if timer is None else timer.measure(name)


def now() -> float:
    """Seconds on a clock of this process, read when the GPUs that it uses have done what they were given."""
    for device in range(torch.cuda.device_count()):
        # Waiting on a GPU that holds nothing of ours would set it up.
        if torch.cuda.memory_reserved(device):
            torch.cuda.synchronize(device)
    return time.perf_counter()
