"""Records a sparse run as it goes: queries, keys and masks of chosen layers and steps, and the recall of all calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from fastdit.adapters import PipelineAdapter
from fastdit.api import settle_config
from fastdit.attend import DenseAttention, sdpa
from fastdit.config import AttentionConfig
from fastdit.layer_slot import ForwardState, LayerSlot
from fastdit.plan import Plan
from fastdit.plan_config import PlanConfig, identify
from fastdit.probe import AttentionProbe, ProbeSlot
from fastdit.ragged_text import ragged_step
from fastdit.recall import sampled_recall
from fastdit.recorded_call import RecordedCall, RecordedLaunch
from fastdit.session import Session
from fastdit.step_result import StepResult

MAX_BYTES = 2 << 30
SAMPLE_TILES = 8
SAMPLE_ROWS = 2


@dataclass(frozen=True, eq=False)
class CallRecall:
    """How well the mask of one sparse call held.

    Args:
        recall: Share of the softmax mass of sampled query rows on keys of level 0, `[H]`, mean over the batch.
        age: Steps since the mask was built; 0 where it was built in this call.
    """

    recall: torch.Tensor
    age: int


class RecordingSlot(ProbeSlot):
    """A slot that does what the config says, and shows its calls to a recorder."""

    probe: AttentionRecorder

    def wants_dense(
        self, sequence_length: int, batch: int, heads: int, text_lengths: Sequence[int] | None = None
    ) -> bool:
        """Whether the original processor runs: in dense calls that are not recorded."""
        self._is_dense = LayerSlot.wants_dense(self, sequence_length, batch, heads, text_lengths)
        forward = self.session.current_forward(self.transformer)
        return self._is_dense and (forward is None or not self.probe.keeps(self, forward))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dense: DenseAttention = sdpa,
        text_lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Sparse attention, or dense attention where the config says so: `[B, S, H, D]` in and out."""
        if not self._is_dense:
            return LayerSlot.attend(self, query, key, value, dense, text_lengths)
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"

        def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Any, first: int) -> StepResult:
            result = StepResult(dense(q, k, v), (), tuple(range(q.shape[2])))
            self.look(replace(forward, grid=grid), q, k, result)
            return result

        if text_lengths is None:
            return step(query, key, value, forward.grid, 0).out
        return ragged_step(query, key, value, forward.grid, text_lengths, step)[0]

    def look(self, forward: ForwardState, query: torch.Tensor, key: torch.Tensor, result: StepResult) -> None:
        """Show the call to the recorder."""
        super().look(forward, query, key, result)
        self.probe.look(self, forward, query, key, result)


class AttentionRecorder(AttentionProbe):
    """Context manager in which a pipeline runs as `fastdit.enable` would have it, and what it does is recorded.

    Of every step the first CFG branch called is recorded. Measuring recall reads `SAMPLE_TILES * SAMPLE_ROWS` query
    rows of each sparse call; the output is that of an unrecorded run.

    Args:
        pipe: A pipeline that is not enabled.
        config: As for `fastdit.enable`.
        steps: Denoising steps whose queries, keys and masks are kept.
        layers: Layers, likewise.
        max_bytes: Bound on what is kept; calls beyond it are counted in `left_out`.

    Attributes:
        calls: What was kept, by `(transformer, layer, step)`.
        recalls: Of every sparse call, likewise.
        left_out: Chosen calls that found no room.

    Raises:
        AlreadyEnabledError: The pipeline is enabled.
        ConfigError: `config` is none.
        PlanError: The plan was made for another model.
        UnsupportedModelError: No adapter knows the pipeline's transformer.
    """

    slot_class = RecordingSlot

    def __init__(
        self,
        pipe: Any,
        config: AttentionConfig | Plan | str | None,
        steps: Collection[int],
        layers: Collection[int],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(pipe, steps)
        self._config = settle_config(config)
        self.layers = frozenset(layers)
        self.max_bytes = max_bytes
        self.calls: dict[tuple[int, int, int], RecordedCall] = {}
        self.recalls: dict[tuple[int, int, int], CallRecall] = {}
        self.left_out = 0
        self._branches: dict[tuple[int, int, int], str] = {}
        self._bytes = 0

    @property
    def session(self) -> Session:
        """Statistics of the run."""
        assert self._session is not None, "asked inside the context or after it"
        return self._session

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.identities = [identify(module, adapter.sites(module)) for _, module, adapter in self.found]
            if isinstance(self._config, PlanConfig):
                self._config.check_model(self.identities)
        except BaseException:
            self.session.close()
            raise
        return self

    def _install(self, session: Session, adapter: PipelineAdapter, site: Any, slot: ProbeSlot) -> None:
        super()._install(session, adapter, site, slot)
        # The summary of the run counts them.
        session.slots.append(slot)

    def keeps(self, slot: LayerSlot, forward: ForwardState) -> bool:
        """Whether queries, keys and masks of a call are kept."""
        place = slot.transformer, slot.layer, forward.tick.step
        is_first = self._branches.get(place, forward.tick.branch) == forward.tick.branch
        return slot.layer in self.layers and forward.tick.step in self.steps and is_first

    def look(
        self, slot: LayerSlot, forward: ForwardState, query: torch.Tensor, key: torch.Tensor, result: StepResult
    ) -> None:
        """Note a call; `query` and `key` are `[b, S, H, D]` in the model's order."""
        place = slot.transformer, slot.layer, forward.tick.step
        if self._branches.setdefault(place, forward.tick.branch) != forward.tick.branch:
            return
        if result.launches:
            self.recalls[place] = CallRecall(_recall(result), 0 if result.reuse is None else result.reuse.age)
        if self.keeps(slot, forward):
            self._keep(place, slot, forward, query, key, result)

    def _keep(
        self,
        place: tuple[int, int, int],
        slot: LayerSlot,
        forward: ForwardState,
        query: torch.Tensor,
        key: torch.Tensor,
        result: StepResult,
    ) -> None:
        # Entries of other text lengths than the last come first and make room for it.
        earlier = self.calls.pop(place, None)
        self._bytes -= 0 if earlier is None else earlier.num_bytes
        if self._bytes + 2 * query[-1].nbytes > self.max_bytes:
            self.left_out += 1
            return
        q, k = (x[-1].transpose(0, 1).detach().cpu().contiguous() for x in (query, key))
        record = self.session.stats.records.get((*place[:2], forward.tick.branch, place[2]))
        reason = None if result.launches or record is None else record.dense_reason
        call = RecordedCall(
            transformer=slot.transformer,
            layer=slot.layer,
            step=forward.tick.step,
            branch=forward.tick.branch,
            phase=forward.phase,
            grid=forward.grid,
            dense_reason=reason,
            query=q,
            key=k,
            launches=tuple(_launches(result)),
        )
        if self._bytes + call.num_bytes > self.max_bytes:
            self.left_out += 1
            return
        self.calls[place] = call
        self._bytes += call.num_bytes


def _launches(result: StepResult) -> list[RecordedLaunch]:
    """Masks of the last batch entry, on the CPU."""
    found = []
    for launch in result.launches:
        mask = launch.mask
        slots = int(mask.counts.max())
        # What no row lists is not worth keeping.
        last = replace(
            mask, indices=mask.indices[-1:, ..., :slots].cpu().clone(), counts=mask.counts[-1:].cpu().clone()
        )
        orders = (x.to(torch.int32).cpu() for x in (launch.query_order, launch.key_order))
        found.append(RecordedLaunch(launch.heads, last, *orders))
    return found


def _recall(result: StepResult) -> torch.Tensor:
    """Recall of each head on sampled rows, on the device; 1 for dense heads."""
    recall = result.out.new_ones(result.out.shape[2], dtype=torch.float32)
    for launch in result.launches:
        found = sampled_recall(launch.query, launch.key, launch.mask, SAMPLE_TILES, SAMPLE_ROWS).mean(0).float()
        recall = found if launch.places is None else recall.index_copy(0, launch.places, found)
    return recall.clamp(0, 1)
