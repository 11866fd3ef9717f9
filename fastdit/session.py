"""Everything `enable` attaches to one pipeline: clock, slots, cache, statistics, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch

from fastdit.clock import RunClock
from fastdit.compiled import begin_forward as compiled_begin_forward
from fastdit.compiled import pack_geometry, register
from fastdit.config import AttentionConfig
from fastdit.errors import NotEnabledError
from fastdit.grid import VideoGrid
from fastdit.guard import HeadGuard, RecallGuard
from fastdit.layer_slot import ForwardState, LayerSlot
from fastdit.mask_cache import MaskCache
from fastdit.run_memory import RunMemory
from fastdit.statistics import RunStatistics

TextLengths = tuple[int, ...] | torch.Tensor | None


class Session:
    """State of one enabled pipeline; also a context manager that disables it.

    Args:
        config: The method and its settings.
        pipe: What is enabled; only its scheduler is read, and it is held weakly.
        guard: What heads are held to while they run.
    """

    def __init__(self, config: AttentionConfig, pipe: Any = None, guard: RecallGuard | None = None) -> None:
        self.config = config
        self.guard = None if guard is None else HeadGuard(guard, config)
        self.clock = RunClock(pipe)
        self.cache = MaskCache()
        self.memory = RunMemory()
        self.stats = RunStatistics()
        self.slots: list[LayerSlot] = []
        self.transformer_names: list[str] = []
        self.handle = register(self)
        self._undo = ExitStack()
        self._forwards: dict[int, ForwardState] = {}
        self._closed = False

    def push_undo(self, action: Callable[[], None]) -> None:
        """Add a way back, run by `close` in reverse order."""
        self._undo.callback(action)

    def begin_forward(self, transformer: int, grid: VideoGrid, text_lengths: TextLengths = None) -> None:
        """Settle step, branch and the decision for all layers of a transformer call.

        Args:
            transformer: Number of the transformer in the pipeline.
            grid: Geometry of the call.
            text_lengths: Valid text tokens of each batch entry, which come first; a tensor `[B]` in compiled code,
                where `grid` counts invalid ones too; `None` for families that pass only valid text.
        """
        if torch.compiler.is_compiling():
            assert not isinstance(text_lengths, tuple), "compiled code must not read lengths"
            compiled_begin_forward(self.handle, transformer, pack_geometry(grid), text_lengths)
            return
        if isinstance(text_lengths, torch.Tensor):
            text_lengths = tuple(text_lengths.tolist())
        self._forwards.pop(transformer, None)
        tick = self.clock.begin_forward(transformer)
        self.stats.begin(tick.run)
        self.memory.begin(tick.run)
        if self.guard is not None:
            self.guard.begin(tick.run)
        self.config.check_grid(grid)
        phase = self.config.phase_at(tick.step, tick.num_inference_steps)
        reason: str | None = None
        if grid.length < self.config.min_tokens:
            reason = "min_tokens"
        elif self.config.schedule.is_dense_step(tick.step, tick.num_inference_steps):
            reason = "dense_steps"
        self._forwards[transformer] = ForwardState(tick, grid, reason, phase, text_lengths)

    def current_forward(self, transformer: int) -> ForwardState | None:
        """State of the transformer call in progress."""
        return self._forwards.get(transformer)

    def end_run(self) -> None:
        """Note the end of a pipeline call; statistics stay readable until the next one begins."""
        self.clock.end_run()
        self.memory.clear()
        self._forwards.clear()

    def reset(self) -> None:
        """Forget the run in progress, e.g. between runs of a bare transformer without a scheduler."""
        self.end_run()
        self.cache.clear()

    def summary(self) -> str:
        """What the latest run did, as a text table."""
        from fastdit.report import summarize

        return summarize(self)

    def close(self) -> None:
        """Put the pipeline back as it was, last change first. An error in one step does not stop the others."""
        if self._closed:
            raise NotEnabledError("this session is closed already")
        self._closed = True
        self.cache.clear()
        self.memory.clear()
        self._forwards.clear()
        self._undo.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self.close()
