"""Session and slots of a measured run: dense, but for the layers that a repeated call makes sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastdit.attend import DenseAttention, sdpa, sparse_step
from fastdit.config import AttentionConfig
from fastdit.grid import VideoGrid
from fastdit.layer_slot import ForwardState
from fastdit.probe import ProbeSlot
from fastdit.ragged_text import ragged_step
from fastdit.search.frame_gains import FrameGains
from fastdit.session import Session, TextLengths
from fastdit.step_result import StepResult

if TYPE_CHECKING:
    from fastdit.search.measure import ModeProbe


class MeasuringSession(Session):
    """A session that can be told not to count calls, while a transformer call is repeated.

    Attributes:
        followed: What goes through the run backwards, and knows then which call is computed again.
    """

    repeating = False
    followed: FrameGains | None = None

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

    def current_forward(self, transformer: int) -> ForwardState | None:
        """State of the transformer call in progress, or of an earlier one that is computed again."""
        current = super().current_forward(transformer)
        return current if self.followed is None else self.followed.state(current)


class MeasuringSlot(ProbeSlot):
    """A slot that measures all modes, is sparse while the call is repeated with it, or follows errors to the frames."""

    probe: ModeProbe

    def wants_dense(
        self, sequence_length: int, batch: int, heads: int, text_lengths: Sequence[int] | None = None
    ) -> bool:
        """Whether the original processor runs."""
        if self.probe.sparse is not None:
            return not self.probe.is_sparse(self.transformer, self.layer)
        if self.probe.frame_gains is None:
            return super().wants_dense(sequence_length, batch, heads, text_lengths)
        # A call that is computed again must take the way that it took before.
        forward = self.session.current_forward(self.transformer)
        return forward is None or forward.grid.length != sequence_length

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dense: DenseAttention = sdpa,
        text_lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Measure and be dense, or be sparse: `[B, S, H, D]` in and out."""
        if self.probe.sparse is None and self.probe.frame_gains is not None:
            return self._follow(self.probe.frame_gains, query, key, value, dense, text_lengths)
        if self.probe.sparse is None:
            return super().attend(query, key, value, dense, text_lengths)
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"
        name = self.probe.sparse[2]
        return self._sparse(name, forward, query, key, value, text_lengths)

    def _follow(
        self,
        followed: FrameGains,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dense: DenseAttention,
        text_lengths: Sequence[int] | None,
    ) -> torch.Tensor:
        """Dense attention whose errors and gradients meet when the run is gone through backwards."""
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"
        step, wanted = forward.tick.step, self.probe.wants(self.transformer, self.layer, forward.tick.step)
        if wanted and not followed.going_back:
            with torch.no_grad():
                # Measured alone: the output is computed below.
                super().attend(query, key, value, lambda q, k, v: q, text_lengths)
        if text_lengths is None:
            out = dense(query, key, value)
        else:

            def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: VideoGrid, first: int) -> StepResult:
                return StepResult(dense(q, k, v), (), tuple(range(q.shape[2])))

            out = ragged_step(query, key, value, forward.grid, text_lengths, whole)[0]
        if not followed.going_back:
            followed.follow(out, self.transformer, self.layer, forward)
        elif followed.takes(self.transformer, self.layer, step):
            with torch.no_grad():
                sparse = (self._sparse(name, forward, query, key, value, text_lengths) for name in followed.modes)
                errors = torch.stack([one.float() - out.float() for one in sparse])
            followed.keep(errors, self.transformer, self.layer, forward.grid)
        return out

    def _sparse(
        self,
        name: str,
        forward: ForwardState,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        text_lengths: Sequence[int] | None,
    ) -> torch.Tensor:
        """The output of all heads in one mode, in the orders that it was measured with in this phase."""
        config, site = self.probe.sparse_call(name, self.transformer, self.layer, forward.tick.step)

        def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: VideoGrid, first: int) -> StepResult:
            return sparse_step(q, k, v, grid, config, self.session.cache, None, site)

        if text_lengths is None:
            return step(query, key, value, forward.grid, 0).out
        return ragged_step(query, key, value, forward.grid, text_lengths, step)[0]
