"""Session and slots of a measured run: dense, but for the layers that a repeated call makes sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastdit.attend import DenseAttention, sdpa, sparse_step
from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.probe import ProbeSlot
from fastdit.ragged_text import ragged_step
from fastdit.session import Session, TextLengths
from fastdit.step_result import StepResult

if TYPE_CHECKING:
    from fastdit.search.measure import ModeProbe


class MeasuringSession(Session):
    """A session that can be told not to count calls, while a transformer call is repeated."""

    repeating = False

    def __init__(self, config: AttentionConfig, pipe: Any = None) -> None:
        super().__init__(config, pipe)
        self.executed: set[tuple[int, int]] = set()
        self.num_steps = 0

    def begin_forward(self, transformer: int, grid: VideoGrid, text_lengths: TextLengths = None) -> None:
        """As in `Session`, unless repeating: then the state of the call that is repeated stays."""
        if self.repeating:
            return
        super().begin_forward(transformer, grid, text_lengths)
        forward = self.current_forward(transformer)
        if forward is not None:
            tick = forward.tick
            self.executed.add((transformer, tick.step))
            self.num_steps = max(self.num_steps, tick.step + 1, tick.num_inference_steps or 0)


class MeasuringSlot(ProbeSlot):
    """A slot that measures all modes, or is sparse while the call is repeated with it."""

    probe: ModeProbe

    def wants_dense(
        self, sequence_length: int, batch: int, heads: int, text_lengths: Sequence[int] | None = None
    ) -> bool:
        """Whether the original processor runs."""
        if self.probe.sparse is not None:
            return not self.probe.is_sparse(self.transformer, self.layer)
        return super().wants_dense(sequence_length, batch, heads, text_lengths)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dense: DenseAttention = sdpa,
        text_lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Measure and be dense, or be sparse: `[B, S, H, D]` in and out."""
        if self.probe.sparse is None:
            return super().attend(query, key, value, dense, text_lengths)
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"
        config, site = self.probe.sparse_call(self.transformer, self.layer, forward.tick.step)

        def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: VideoGrid, first: int) -> StepResult:
            return sparse_step(q, k, v, grid, config, self.session.cache, None, site)

        if text_lengths is None:
            return step(query, key, value, forward.grid, 0).out
        return ragged_step(query, key, value, forward.grid, text_lengths, step)[0]
