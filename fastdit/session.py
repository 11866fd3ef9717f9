"""Everything `enable` attaches to one pipeline: clock, slots, cache, statistics, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from fastdit.attend import DenseAttention, sdpa, sparse_step
from fastdit.clock import RunClock, Tick
from fastdit.config import AttentionConfig
from fastdit.errors import NotEnabledError, UnsupportedModelError
from fastdit.grid import VideoGrid
from fastdit.head_groups import split_heads
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.run_memory import RunMemory
from fastdit.statistics import CallRecord, ReuseRecord, RunStatistics


@dataclass(frozen=True)
class ForwardState:
    """What the layers of one transformer call need to know.

    Args:
        tick: Step and branch.
        grid: Geometry of the sequence.
        dense_reason: Why all layers are dense in this call; `None` if the layers decide.
    """

    tick: Tick
    grid: VideoGrid
    dense_reason: str | None


class LayerSlot:
    """The session as one self-attention layer sees it.

    Args:
        session: Owner.
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer in the transformer.
        name: Module path, for messages.
        num_layers: Layers of the transformer.
    """

    def __init__(self, session: Session, transformer: int, layer: int, name: str, num_layers: int) -> None:
        self.session = session
        self.transformer = transformer
        self.layer = layer
        self.name = name
        self.config = session.config.at_layer(layer, num_layers)
        self.always_dense = session.config.schedule.is_dense_layer(layer, num_layers)

    def wants_dense(self, sequence_length: int, batch: int, heads: int) -> bool:
        """Whether this call is dense; notes it in the statistics if so.

        Args:
            sequence_length: Tokens `S` the layer was given.
            batch: Batch entries.
            heads: Attention heads.
        """
        forward = self.session.current_forward(self.transformer)
        if forward is None:
            return True
        if sequence_length != forward.grid.length:
            raise UnsupportedModelError(
                f"layer {self.name} attends over {sequence_length} tokens, the video grid {forward.grid} has "
                f"{forward.grid.length}: this mode of the model is not supported; call fastdit.disable(pipe) to go on"
            )
        reason = forward.dense_reason or ("dense_layers" if self.always_dense else None)
        if reason is None and not split_heads(self.config, heads).launches:
            reason = "dense_heads"
        if reason is not None:
            self._record(forward, reason, batch * heads * sequence_length**2, None)
        return reason is not None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dense: DenseAttention = sdpa
    ) -> torch.Tensor:
        """Sparse attention of this call, after `wants_dense` said no.

        Args:
            query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
            key: `[B, S, H, D]`.
            value: `[B, S, H, D]`.
            dense: The pipeline's dense attention, for heads that stay dense.

        Returns:
            `[B, S, H, D]`.
        """
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"
        session, tick = self.session, forward.tick
        site = CallSite(self.transformer, self.layer, tick.branch, tick.step)
        result = sparse_step(query, key, value, forward.grid, self.config, session.cache, session.memory, site, dense)
        batch, length, heads, _ = query.shape
        self._record(forward, None, batch * heads * length**2, result.kept_pairs(), result.reuse)
        return result.out

    def _record(
        self,
        forward: ForwardState,
        reason: str | None,
        pairs: int,
        kept: torch.Tensor | None,
        reuse: ReuseRecord | None = None,
    ) -> None:
        tick = forward.tick
        self.session.stats.add(
            CallRecord(self.transformer, self.layer, tick.step, tick.branch, reason, pairs, kept, reuse)
        )


class Session:
    """State of one enabled pipeline; also a context manager that disables it.

    Args:
        config: The method and its settings.
        pipe: What is enabled; only its scheduler is read, and it is held weakly.
    """

    def __init__(self, config: AttentionConfig, pipe: Any = None) -> None:
        self.config = config
        self.clock = RunClock(pipe)
        self.cache = MaskCache()
        self.memory = RunMemory()
        self.stats = RunStatistics()
        self.slots: list[LayerSlot] = []
        self.transformer_names: list[str] = []
        self._undo = ExitStack()
        self._forwards: dict[int, ForwardState] = {}
        self._closed = False

    def push_undo(self, action: Callable[[], None]) -> None:
        """Add a way back, run by `close` in reverse order."""
        self._undo.callback(action)

    def begin_forward(self, transformer: int, grid: VideoGrid) -> None:
        """Settle step, branch and the decision for all layers of a transformer call.

        Args:
            transformer: Number of the transformer in the pipeline.
            grid: Geometry of the call.
        """
        self._forwards.pop(transformer, None)
        tick = self.clock.begin_forward(transformer)
        self.stats.begin(tick.run)
        self.memory.begin(tick.run)
        reason: str | None = None
        if grid.length < self.config.min_tokens:
            reason = "min_tokens"
        elif self.config.schedule.is_dense_step(tick.step, tick.num_inference_steps):
            reason = "dense_steps"
        self._forwards[transformer] = ForwardState(tick, grid, reason)

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
