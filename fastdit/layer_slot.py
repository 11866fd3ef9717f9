"""The session as one self-attention layer sees it: dense or sparse, and the attention itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fastdit.attend import DenseAttention, sdpa, sparse_step
from fastdit.clock import Tick
from fastdit.compiled import attend as compiled_attend
from fastdit.compiled import register
from fastdit.config import AttentionConfig
from fastdit.errors import UnsupportedModelError
from fastdit.grid import VideoGrid
from fastdit.head_groups import split_heads
from fastdit.mask_reuse import CallSite
from fastdit.ragged_text import dense_pairs, ragged_dense, ragged_step
from fastdit.statistics import CallRecord, ReuseRecord
from fastdit.step_result import StepResult

if TYPE_CHECKING:
    from fastdit.session import Session


@dataclass(frozen=True)
class ForwardState:
    """What the layers of one transformer call need to know.

    Args:
        tick: Step and branch.
        grid: Geometry of the sequence.
        dense_reason: Why all layers are dense in this call; `None` if the layers decide.
        phase: Number of the phase of the run, which the settings of the layers depend on.
        text_lengths: Valid text tokens of each batch entry; `None` for all that `grid` has.
    """

    tick: Tick
    grid: VideoGrid
    dense_reason: str | None
    phase: int = 0
    text_lengths: tuple[int, ...] | None = None

    def ragged_lengths(self) -> tuple[int, ...] | None:
        """`text_lengths` where the text of the grid has invalid tokens in an entry, else `None`."""
        return None if set(self.text_lengths or ()) <= {self.grid.text_length} else self.text_lengths


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
        self.configs = session.config.phase_configs(transformer, layer, num_layers)
        self.always_dense = session.config.schedule.is_dense_layer(layer, num_layers)
        # The pipeline's dense attention of this layer, asked for anew in every call: users exchange backends.
        self.dense_backend: Callable[[], DenseAttention] = _sdpa_backend
        self.handle = register(self)

    def wants_dense(
        self, sequence_length: int, batch: int, heads: int, text_lengths: Sequence[int] | None = None
    ) -> bool:
        """Whether this call is dense; notes it in the statistics if so.

        In compiled code the answer is always no: `attend` decides when it runs.

        Args:
            sequence_length: Tokens `S` the layer was given, invalid text tokens included.
            batch: Batch entries.
            heads: Attention heads.
            text_lengths: Valid text tokens of each batch entry; `None` for all.
        """
        if torch.compiler.is_compiling():
            return False
        forward = self.session.current_forward(self.transformer)
        if forward is None:
            return True
        if sequence_length != forward.grid.length:
            raise UnsupportedModelError(
                f"layer {self.name} attends over {sequence_length} tokens, the video grid {forward.grid} has "
                f"{forward.grid.length}: this mode of the model is not supported; call fastdit.disable(pipe) to go on"
            )
        reason = forward.dense_reason or ("dense_layers" if self.always_dense else None)
        if reason is None and not split_heads(self._config(forward), heads).launches:
            reason = "dense_heads"
        if reason is not None:
            self._record(forward, reason, dense_pairs(forward.grid, batch, heads, text_lengths), None)
        return reason is not None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dense: DenseAttention = sdpa,
        text_lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Sparse attention of this call, after `wants_dense` said no.

        Args:
            query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
            key: `[B, S, H, D]`.
            value: `[B, S, H, D]`.
            dense: The pipeline's dense attention, for heads that stay dense.
            text_lengths: Valid text tokens of each batch entry, in front of the invalid ones, which neither see nor
                are seen; `None` if all are valid.

        Returns:
            `[B, S, H, D]`, zero at invalid text tokens.
        """
        if torch.compiler.is_compiling():
            out: torch.Tensor = compiled_attend(query, key, value, self.handle, self.session.handle, text_lengths)
            return out
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"
        session, tick = self.session, forward.tick
        config = self._config(forward)
        orders = session.config.given_orders(self.transformer, self.layer, forward.phase)

        def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: VideoGrid, branch: str) -> StepResult:
            site = CallSite(self.transformer, self.layer, branch, tick.step, forward.phase, orders=orders)
            result = sparse_step(q, k, v, grid, config, session.cache, session.memory, site, dense)
            self.look(replace(forward, grid=grid), q, k, result)
            return result

        if text_lengths is None:
            result = step(query, key, value, forward.grid, tick.branch)
            out, kept, reuse = result.out, result.kept_pairs(), result.reuse
        else:
            out, kept, reuse = ragged_step(
                query,
                key,
                value,
                forward.grid,
                text_lengths,
                lambda q, k, v, grid, first: step(q, k, v, grid, f"{tick.branch}/{first}"),
            )
        self._record(
            forward, None, dense_pairs(forward.grid, query.shape[0], query.shape[2], text_lengths), kept, reuse
        )
        return out

    def look(self, forward: ForwardState, query: torch.Tensor, key: torch.Tensor, result: StepResult) -> None:
        """Look at what a sparse call did: called once for all batch entries that have the text length of the grid.

        Args:
            forward: State of the transformer call, with the grid of these entries.
            query: `[b, S, H, D]` in the model's token order.
            key: Likewise.
            result: What came of it.
        """
        if self.session.guard is not None:
            self.session.guard.look(result, self.transformer, self.layer, forward.phase, forward.tick.step)

    def attend_either(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        text_lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Dense or sparse attention, as the session decides: what compiled code calls.

        Args:
            query: `[B, S, H, D]` in the model's token order, after norms and RoPE.
            key: `[B, S, H, D]`.
            value: `[B, S, H, D]`.
            text_lengths: As in `attend`.

        Returns:
            `[B, S, H, D]`, zero at invalid text tokens.
        """
        batch, length, heads, _ = query.shape
        dense = self.dense_backend()
        forward = self.session.current_forward(self.transformer)
        if forward is not None and forward.text_lengths is not None:
            # Compiled code cannot know how much of the text is valid, and gives all of it.
            text_lengths = forward.ragged_lengths()
            query, key, value = (x[:, : forward.grid.length] for x in (query, key, value))
        if not self.wants_dense(query.shape[1], batch, heads, text_lengths):
            out = self.attend(query, key, value, dense, text_lengths)
        elif text_lengths is None or forward is None:
            out = dense(query, key, value)
        else:
            out = ragged_dense(query, key, value, forward.grid, text_lengths, dense)
        return out if out.shape[1] == length else F.pad(out, (0, 0, 0, 0, 0, length - out.shape[1]))

    def _config(self, forward: ForwardState) -> AttentionConfig:
        config, guard = self.configs[forward.phase], self.session.guard
        if guard is None:
            return config
        return guard.settle(config, self.transformer, self.layer, forward.phase, forward.tick.step)

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


def _sdpa_backend() -> DenseAttention:
    return sdpa
