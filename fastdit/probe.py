"""Looks at the attention of a dense run: sampled query rows of chosen steps, layer by layer.

Uses the door of the sparse methods (adapter, session, slots) with slots that measure instead of skipping. Steps that
are not asked for run the original processors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

import fastdit.attention_profile as profile
from fastdit.adapters import PipelineAdapter, find_adapter
from fastdit.api import find_transformers
from fastdit.attend import DenseAttention, sdpa
from fastdit.config import AdaptiveConfig, AttentionConfig
from fastdit.errors import AlreadyEnabledError
from fastdit.grid import VideoGrid
from fastdit.layer_slot import ForwardState, LayerSlot
from fastdit.ragged_text import ragged_step
from fastdit.session import Session
from fastdit.step_result import StepResult
from fastdit.validation import check_count


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """Attention of one layer in one transformer call; tensors are on the CPU.

    Args:
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer.
        name: Module path.
        step: Denoising step.
        branch: CFG branch.
        grid: Geometry.
        share: Share of keys that hold 95 % of the mass, mean over rows `[H]`.
        entropy: Normalised entropy, mean over rows `[H]`.
        distance: Mean distances in t, y, x `[H, 3]`.
        uniform_distance: The same for uniform attention `[3]`.
        agreement: Shared mass of distant rows `[H]`.
        blocks: Mass of key blocks for every sampled row `[H, n, blocks]`.
        needed: The fewest blocks that hold 95 %, bool `[H, n, blocks]`.
        patch: Attention of the middle token over the video `[H, T, height, width]`.
    """

    transformer: int
    layer: int
    name: str
    step: int
    branch: str
    grid: VideoGrid
    share: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor
    uniform_distance: torch.Tensor
    agreement: torch.Tensor
    blocks: torch.Tensor
    needed: torch.Tensor
    patch: torch.Tensor

    def kinds(self) -> list[str]:
        """Kind of every head, by `attention_profile.classify`."""
        return [
            profile.classify(float(self.share[head]), self.distance[head], self.uniform_distance, float(agreement))
            for head, agreement in enumerate(self.agreement)
        ]


def view_attention(query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, rows: int, block: int) -> dict[str, Any]:
    """Measure one attention call on sampled rows; the text tokens of joint models are left out and the rest rescaled.

    Args:
        query: `[B, S, H, D]`.
        key: Likewise.
        grid: Geometry.
        rows: Sampled query tokens.
        block: Keys per block.

    Returns:
        The measured fields of `LayerView`.
    """
    video = slice(grid.video_start, grid.video_start + grid.video_length)
    query, key = query[:, video], key[:, video]
    chosen = profile.sample_rows(grid.video_length, rows)
    middle = ((grid.frames // 2) * grid.height + grid.height // 2) * grid.width + grid.width // 2
    seen = profile.attention_rows(query, key, chosen)
    uniform = torch.full((1, len(chosen), grid.video_length), 1 / grid.video_length, device=seen.device)
    blocks = profile.block_mass(seen, block)
    fields = {
        "share": profile.mass_share(seen).mean(-1),
        "entropy": profile.entropy(seen).mean(-1),
        "distance": profile.mean_distance(seen, chosen, grid).mean(-2),
        "uniform_distance": profile.mean_distance(uniform, chosen, grid)[0].mean(0),
        "agreement": profile.row_agreement(seen),
        "blocks": blocks,
        "needed": profile.needed_blocks(blocks),
        "patch": profile.attention_rows(query, key, torch.tensor([middle]))[:, 0].unflatten(
            -1, (grid.frames, grid.height, grid.width)
        ),
    }
    return {name: value.detach().cpu() for name, value in fields.items()}


class ProbeSlot(LayerSlot):
    """A slot that measures the calls of chosen steps, and computes them densely."""

    probe: AttentionProbe

    def wants_dense(
        self, sequence_length: int, batch: int, heads: int, text_lengths: Sequence[int] | None = None
    ) -> bool:
        """Whether the original processor runs: every step but the chosen ones, and one call per step and layer."""
        forward = self.session.current_forward(self.transformer)
        if forward is None or forward.grid.length != sequence_length:
            return True
        return not self.probe.wants(self.transformer, self.layer, forward.tick.step)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dense: DenseAttention = sdpa,
        text_lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Measure, then dense attention: `[B, S, H, D]` in and out; invalid text tokens are left out."""
        forward = self.session.current_forward(self.transformer)
        assert forward is not None, "attend is only called inside a transformer forward"

        def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: VideoGrid, first: int) -> StepResult:
            if first == 0:
                self.probe.measure(self, dataclasses.replace(forward, grid=grid), q, k, v)
            return StepResult(dense(q, k, v), (), tuple(range(q.shape[2])))

        if text_lengths is None:
            out = look(query, key, value, forward.grid, 0).out
        else:
            out = ragged_step(query, key, value, forward.grid, text_lengths, look)[0]
        self.probe.done.add((self.transformer, self.layer, forward.tick.step))
        return out


class AttentionProbe:
    """Context manager that measures the self-attention of a pipeline; the pipeline is restored on exit.

    Args:
        pipe: A pipeline that is not enabled.
        steps: Denoising steps to look at; the first CFG branch called in a step is measured.
        rows: Sampled query tokens per call.
        block: Keys per block.

    Raises:
        AlreadyEnabledError: The pipeline is enabled.
        UnsupportedModelError: No adapter knows its transformer.
    """

    slot_class: type[ProbeSlot] = ProbeSlot
    session_class: type[Session] = Session

    def __init__(self, pipe: Any, steps: Collection[int], *, rows: int = 64, block: int = 64) -> None:
        for name, value in (("rows", rows), ("block", block)):
            check_count(name, value, 1)
        self.rows, self.block = rows, block
        self.views: list[LayerView] = []
        self.steps = frozenset(steps)
        self.done: set[tuple[int, int, int]] = set()
        self._pipe = pipe
        self._config: AttentionConfig = AdaptiveConfig(min_tokens=0)
        self._session: Session | None = None

    def wants(self, transformer: int, layer: int, step: int) -> bool:
        """Whether a call is to be measured: its step is chosen, and no other branch of it was measured."""
        return step in self.steps and (transformer, layer, step) not in self.done

    def measure(
        self, slot: LayerSlot, forward: ForwardState, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Note one call that is wanted; all tensors are `[B, S, H, D]`."""
        measured = view_attention(query, key, forward.grid, self.rows, self.block)
        self.views.append(
            LayerView(
                transformer=slot.transformer,
                layer=slot.layer,
                name=slot.name,
                step=forward.tick.step,
                branch=str(forward.tick.branch),
                grid=forward.grid,
                **measured,
            )
        )

    def __enter__(self) -> Self:
        self.found = [(name, module, find_adapter(module)) for name, module in find_transformers(self._pipe)]
        self._session = session = self.session_class(self._config, self._pipe)
        try:
            for number, (name, module, adapter) in enumerate(self.found):
                session.transformer_names.append(name)
                sites = adapter.sites(module)
                for layer, (path, site) in enumerate(sites):
                    slot = self.slot_class(session, number, layer, path, len(sites))
                    self._install(session, adapter, site, slot)
                session.push_undo(adapter.attach(module, session, number))
        except BaseException:
            session.close()
            raise
        return self

    def _install(self, session: Session, adapter: PipelineAdapter, site: Any, slot: ProbeSlot) -> None:
        original = site.processor
        if isinstance(getattr(original, "slot", None), LayerSlot):
            raise AlreadyEnabledError(f"{slot.name} is enabled already: call fastdit.disable(pipe) first")
        slot.probe = self
        session.push_undo(lambda: setattr(site, "processor", original))
        site.processor = adapter.processor(original, slot)

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()
