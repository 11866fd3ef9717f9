"""What each mode costs and errs, per head: measured on sampled query rows inside dense generations.

At one step of each phase the first guidance branch is looked at. In every layer each mode selects its tiles as it would
in use, and its output on a few query rows is compared with exact attention. Then the whole transformer is run again
with one layer sparse at a time: how far its output moves is the gain of the layer, i.e. how much the layer's error
matters to the model's output, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdit.attend import choose_tiles
from fastdit.config import AttentionConfig, CachedConfig
from fastdit.grid import VideoGrid
from fastdit.layer_slot import ForwardState, LayerSlot
from fastdit.mask_reuse import CallSite
from fastdit.plan import TransformerIdentity
from fastdit.plan_config import identify
from fastdit.probe import AttentionProbe
from fastdit.run_memory import RunMemory
from fastdit.search.frame_gains import FrameGains
from fastdit.search.head_errors import FloatArray, IntArray, ModeFigures, output_grams
from fastdit.search.ladder import Mode, numbered_orders
from fastdit.search.measuring_session import MeasuringSession, MeasuringSlot
from fastdit.search.mode_figures import measure_modes
from fastdit.search.replay import RecordedCalls, sample_of
from fastdit.search.trial_figures import ModeCall

Place = tuple[int, int]


class MeasuringDoneError(Exception):
    """Raised through a pipeline whose run has been measured and is not needed any further."""


class ModeProbe(AttentionProbe):
    """Context manager that measures modes during a dense run; the pipeline is restored on exit.

    Args:
        pipe: A pipeline that is not enabled.
        steps: Denoising steps to measure at.
        modes: Modes by name; dense ones cost 1 and err 0.
        gain_mode: Name of the mode that layers take when their gain is measured; `None` measures no gains.
        phase_at: Phase of a step; heads may settle their orders anew in each.
        build_steps: Steps in which cached modes build the masks that they are measured with later in the phase.
        record_before: Outputs of calls in earlier steps are kept in `recorded`.
        joint_steps: Of the measured steps, those in which every mode is measured in all layers together.
        stops: End the run with `MeasuringDoneError` once all is measured.
        given: Orders that heads take, of each transformer the numbers `[phases, layers, heads, modes]` that another
            probe found (`orders`); `None` settles them.
        frame_gains: Follows errors of the run to its frames, if it is made with gradients.

    Attributes:
        errors: Mean squared error of the sampled outputs behind the output projection, `{(transformer, layer, step):
            [H, modes]}`.
        relatives: The same before the projection, over the mean square of the exact output.
        densities: Share of scores computed, likewise.
        recalls: Recall on the sampled rows, likewise; what a guard may hold heads to.
        orders: Numbers of the orders that all these were measured with, likewise, see `ModeFigures`.
        gains: Mean squared change of the transformer's output over the summed error of the layer's heads,
            `{(transformer, layer, step): gain}`.
        joint: Mean squared change of the transformer's output with all layers in one mode, over what the errors and
            gains of its layers sum up to, `{(transformer, step): [modes]}`.
        grid: Geometry of the run.
    """

    slot_class = MeasuringSlot
    session_class = MeasuringSession

    def __init__(
        self,
        pipe: Any,
        steps: Collection[int],
        modes: Mapping[str, Mode],
        gain_mode: str | None = None,
        phase_at: Callable[[int], int] = lambda step: 0,
        build_steps: Collection[int] = (),
        record_before: int = 0,
        joint_steps: Collection[int] = (),
        stops: bool = False,
        given: Sequence[IntArray] | None = None,
        frame_gains: FrameGains | None = None,
    ) -> None:
        super().__init__(pipe, {*steps, *build_steps})
        self.phase_at = phase_at
        self.frame_gains = frame_gains
        self.measured_steps, self.stops, self.given = frozenset(steps), stops, given
        self.joint_steps = frozenset(joint_steps)
        self.recorded = RecordedCalls(record_before)
        self.modes = dict(modes)
        self.gain_mode = gain_mode
        # What is sparse while a call is repeated: a transformer, its layer (or all of them), and their mode.
        self.sparse: tuple[int, int | None, str] | None = None
        self.errors: dict[tuple[int, int, int], FloatArray] = {}
        self.densities: dict[tuple[int, int, int], FloatArray] = {}
        self.recalls: dict[tuple[int, int, int], FloatArray] = {}
        self.relatives: dict[tuple[int, int, int], FloatArray] = {}
        self.orders: dict[tuple[int, int, int], IntArray] = {}
        self.gains: dict[tuple[int, int, int], float] = {}
        self.joint: dict[Place, FloatArray] = {}
        self.grid: VideoGrid | None = None
        self.identities: list[TransformerIdentity] = []
        self._gained: set[tuple[int, int]] = set()
        # Orders are settled for every rung, and shared with the one that reuses its masks.
        self._memories: dict[AttentionConfig, RunMemory] = {}
        self._grams: dict[Place, torch.Tensor | None] = {}

    def measure(
        self, slot: LayerSlot, forward: ForwardState, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Measure one layer that is wanted; all tensors are `[B, S, H, D]`."""
        assert self._session is not None, "measuring happens inside the context"
        whole = self._session.current_forward(slot.transformer)
        # With all text tokens: `forward` may have those of one batch entry alone.
        self.grid = forward.grid if whole is None else whole.grid
        step, heads = forward.tick.step, query.shape[2]
        place = (slot.transformer, slot.layer, step)
        site = CallSite(slot.transformer, slot.layer, str(forward.tick.branch), step, self.phase_at(step))
        if step not in self.measured_steps:
            self._build_masks(site, forward.grid, query, key, value)
            return
        sparse = {name: mode for name, mode in self.modes.items() if isinstance(mode, AttentionConfig)}
        calls = [ModeCall(mode, self._memory(mode), self._ordered(site, name, mode)) for name, mode in sparse.items()]
        cache, grams = self._session.cache, self._grams[slot.transformer, slot.layer]
        figures = iter(measure_modes(query, key, value, forward.grid, calls, cache, grams))
        found = [next(figures) if name in sparse else ModeFigures.dense(heads) for name in self.modes]
        self.errors[place] = np.stack([one.error for one in found], 1)
        self.densities[place] = np.stack([one.density for one in found], 1)
        self.recalls[place] = np.stack([one.recall for one in found], 1)
        self.relatives[place] = np.stack([one.relative for one in found], 1)
        self.orders[place] = np.stack([one.orders for one in found], 1)

    def _build_masks(
        self, site: CallSite, grid: VideoGrid, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """What cached modes do at the beginning of a phase."""
        assert self._session is not None, "measuring happens inside the context"
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        for name, mode in self.modes.items():
            if isinstance(mode, CachedConfig):
                own, memory = self._ordered(site, name, mode), self._memory(mode)
                choose_tiles(query, key, value, grid, mode, self._session.cache, memory, own)

    def _ordered(self, site: CallSite, name: str, mode: Mode) -> CallSite:
        """The call with the orders that a mode is given in it."""
        if self.given is None:
            return site
        numbers = self.given[site.transformer][site.phase, site.layer, :, list(self.modes).index(name)]
        return replace(site, orders=numbered_orders(mode, numbers.tolist()))

    def is_sparse(self, transformer: int, layer: int) -> bool:
        """Whether a layer is sparse in the call that is being repeated."""
        assert self.sparse is not None, "asked while a call is repeated"
        place, only, _ = self.sparse
        return place == transformer and only in (None, layer)

    def sparse_call(self, name: str, transformer: int, layer: int, step: int) -> tuple[AttentionConfig, CallSite]:
        """Settings of a layer in one mode, in the orders that its error was measured with in the phase of the step."""
        mode = self.modes[name]
        assert isinstance(mode, AttentionConfig), "dense layers are computed by the model"
        phase = self.phase_at(step)
        found = {at: one for (t, at_layer, at), one in self.orders.items() if (t, at_layer) == (transformer, layer)}
        measured = step if step in found else next(at for at in found if self.phase_at(at) == phase)
        numbers = found[measured][:, list(self.modes).index(name)]
        orders = numbered_orders(mode, numbers.tolist())
        config = mode.source if isinstance(mode, CachedConfig) else mode
        return config, CallSite(transformer, layer, "", step, self.phase_at(step), orders=orders)

    def _memory(self, mode: AttentionConfig) -> RunMemory:
        source = mode.source if isinstance(mode, CachedConfig) else mode
        # Which order suits a head depends on how much it keeps: a whole plan lost 2 to 3 dB where they were shared.
        shared = self._memories.setdefault(source, RunMemory())
        if not isinstance(mode, CachedConfig):
            return shared
        if mode not in self._memories:
            # Masks of its own, orders those of its source.
            self._memories[mode] = RunMemory()
            self._memories[mode].orders = shared.orders
        return self._memories[mode]

    def executed(self) -> NDArray[np.bool_]:
        """Whether a transformer ran in a step, bool `[transformers, steps]`; known once a run is over."""
        session = self._session
        assert isinstance(session, MeasuringSession), "asked after a run"
        found = np.zeros((len(self.found), session.num_steps), np.bool_)
        for transformer, step in session.executed:
            found[transformer, step] = True
        return found

    def __enter__(self) -> Self:
        super().__enter__()
        assert isinstance(self._session, MeasuringSession), "just opened"
        try:
            self._prepare(self._session)
        except BaseException:
            self._session.close()
            raise
        return self

    def _prepare(self, session: MeasuringSession) -> None:
        for number, (_, module, adapter) in enumerate(self.found):
            sites = adapter.sites(module)
            self.identities.append(identify(module, sites))
            for layer, (_, site) in enumerate(sites):
                self._grams[number, layer] = output_grams(site) if self.measured_steps else None
            handle = module.register_forward_hook(self._after_forward(number), with_kwargs=True)
            session.push_undo(handle.remove)
        session.followed = self.frame_gains
        if self.frame_gains is not None:
            following = ExitStack()
            modules = [module for _, module, _ in self.found]
            following.enter_context(self.frame_gains.following(modules, session.current_forward))
            session.push_undo(following.close)

    def _after_forward(self, number: int) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            session = self._session
            assert isinstance(session, MeasuringSession), "hooks live inside the context"
            forward = session.current_forward(number)
            if session.repeating or forward is None:
                return
            step = forward.tick.step
            self.recorded.add(step, output)
            if self.gain_mode is not None and step in self.measured_steps and (number, step) not in self._gained:
                self._gained.add((number, step))
                self._measure_gains(session, number, step, output, lambda: module(*args, **kwargs))
            if self.stops and step >= max(self.measured_steps):
                raise MeasuringDoneError

        return after

    def _measure_gains(
        self, session: MeasuringSession, number: int, step: int, output: Any, repeat: Callable[[], Any]
    ) -> None:
        before = sample_of(output).float()
        layers = [layer for place, layer, at in self.errors if (place, at) == (number, step)]
        names = list(self.modes)

        def moved(layer: int | None, mode: str) -> float:
            self.sparse = (number, layer, mode)
            return (sample_of(repeat()).float() - before).square().mean().item()

        session.repeating = True
        try:
            assert self.gain_mode is not None, "asked only where gains are measured"
            column = names.index(self.gain_mode)
            for layer in layers:
                caused = self.errors[number, layer, step][:, column].sum()
                self.gains[number, layer, step] = _ratio(moved(layer, self.gain_mode), caused)
            if step in self.joint_steps:
                summed = sum(
                    self.errors[number, layer, step].sum(0) * self.gains[number, layer, step] for layer in layers
                )
                self.joint[number, step] = np.array(
                    [
                        _ratio(moved(None, name), caused) if isinstance(mode, AttentionConfig) else 1.0
                        for (name, mode), caused in zip(self.modes.items(), summed, strict=True)
                    ]
                )
        finally:
            session.repeating, self.sparse = False, None


def _ratio(moved: float, caused: float) -> float:
    """1 where a mode errs nowhere, e.g. because its least number of tiles are all: it says nothing then."""
    return moved / caused if caused > 0 else 1.0
