"""Masks of the cached method: built at refresh steps, reused in between, tested for staleness on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastdit.config import CachedConfig
from fastdit.grid import VideoGrid
from fastdit.key_orders import GivenOrders, Selection, keys_in_order
from fastdit.packed_mask import KeptMask
from fastdit.recall import sampled_recall
from fastdit.spans import span
from fastdit.statistics import ReuseRecord
from fastdit_kernels import BlockMask


@dataclass(frozen=True)
class CallSite:
    """One self-attention call of a run.

    Args:
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer in the transformer.
        branch: Guidance branch.
        step: Denoising step.
        phase: Number of the phase of the run; no mask outlives its phase.
        head: First head of the launch, which tells several launches of a layer apart.
        orders: Orders that the heads of the layer are given; `None` for all to settle their own.
    """

    transformer: int
    layer: int
    branch: str
    step: int
    phase: int = 0
    head: int = 0
    orders: GivenOrders | None = None

    @property
    def place(self) -> tuple[int, int, str, int]:
        """What a mask belongs to: all but the step and the phase, which a kept mask notes."""
        return self.transformer, self.layer, self.branch, self.head


# Selects anew for some heads: their places, query, key and value in tile order, and which share the order of queries.
Rebuild = Callable[[list[int], Sequence[torch.Tensor], torch.Tensor | None], BlockMask]


class ReusedMasks:
    """The masks of the run in progress, one per (transformer, layer, branch) and launch.

    Args:
        max_bytes: Bound. Masks are lists while these fit and bits when they do not. A mask that finds no room even as
            bits is not kept, and built anew in the next step; masks that are kept stay as long as they may be reused,
            because all are needed in every step. Others go when there is no room for all: those past their refresh
            step or their phase, and those of a transformer that another one has taken over from.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self.max_bytes = max_bytes
        self._entries: dict[tuple[int, int, str, int], _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

    def choose(
        self,
        config: CachedConfig,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        call: CallSite,
        build: Callable[[], Selection],
        rebuild: Rebuild,
    ) -> tuple[Selection, ReuseRecord]:
        """The mask of one call, reused where that is due.

        Args:
            config: Source, refresh interval and staleness test.
            query: `[B, H, S, D]` in tile order.
            key: `[B, H, S, D]` in the model's token order.
            value: Likewise.
            grid: Geometry.
            call: Which call it is.
            build: Selects anew.
            rebuild: Selects anew for some heads, in the orders that were settled.
        """
        entry = self._lasting(config, query, grid, call)
        if entry is not None:
            return _reuse(entry, config, query, key, value, call.step - entry.step, rebuild)
        self._entries.pop(call.place, None)
        return self._build(config, query, grid, call, build())

    def step_of(self, config: CachedConfig, query: torch.Tensor, grid: VideoGrid, call: CallSite) -> int:
        """The step that the mask which `choose` will give was or will be built in: queries lie in tiles as they did.

        Args:
            config: As for `choose`.
            query: `[B, H, S, D]` in any order.
            grid: Geometry.
            call: Which call it is.
        """
        entry = self._lasting(config, query, grid, call)
        return call.step if entry is None else entry.step

    def _lasting(self, config: CachedConfig, query: torch.Tensor, grid: VideoGrid, call: CallSite) -> _Entry | None:
        """The kept mask, if the call may reuse it."""
        entry = self._entries.get(call.place)
        if entry is None or entry.grid != grid or entry.mask.size != tuple(query.shape[:2]):
            return None
        lasts = 0 <= call.step - entry.step < config.refresh_every and entry.phase == call.phase
        return entry if lasts else None

    def _build(
        self, config: CachedConfig, query: torch.Tensor, grid: VideoGrid, call: CallSite, selection: Selection
    ) -> tuple[Selection, ReuseRecord]:
        recall = None
        if config.min_recall is not None:
            recall = _recall_of_heads(config, query, selection.key, selection.mask)
        kept_mask = KeptMask(selection.mask, query.shape[0], query.shape[1])
        # Half the memory of the indices that a gather takes.
        order = selection.order.to(torch.int32)
        entry = _Entry(
            kept_mask, order, selection.shares_order, grid, call.step, call.phase, recall, config.refresh_every
        )
        if self.num_bytes + entry.num_bytes > self.max_bytes:
            self._entries = {place: other for place, other in self._entries.items() if other.may_serve(place, call)}
        kept = self._finds_room(entry)
        if kept:
            self._entries[call.place] = entry
        mean = None if recall is None else recall.mean(0)
        return selection, ReuseRecord(age=0, built=True, kept=kept, refreshed_heads=0, recall=mean, drift=None)

    def _finds_room(self, entry: _Entry) -> bool:
        """Whether the bound holds with `entry`, after making lists bits where that helps: first its own."""
        held = self.num_bytes
        for other in (entry, *self._entries.values()):
            if held + entry.num_bytes <= self.max_bytes:
                break
            other.mask.shrink()
            held = self.num_bytes
        return held + entry.num_bytes <= self.max_bytes


@dataclass
class _Entry:
    """A kept mask.

    `recall` is `[B, H]` as it was when each head's mask was built; the mask `lasts` so many steps; `stale` is underway
    to the host.
    """

    mask: KeptMask
    order: torch.Tensor
    shares_order: torch.Tensor | None
    grid: VideoGrid
    step: int
    phase: int
    recall: torch.Tensor | None
    lasts: int
    stale: HostCopy | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of mask and order; an order without heads is shared by all sites and costs nothing more."""
        return self.mask.num_bytes + (self.order.nbytes if self.order.ndim == 2 else 0)

    def may_serve(self, place: tuple[int, int, str, int], call: CallSite) -> bool:
        """Whether the mask of `place` may be reused at the time of a call or later."""
        lives = 0 <= call.step - self.step < self.lasts and self.phase == call.phase
        return lives and place[0] == call.transformer


def _reuse(
    entry: _Entry,
    config: CachedConfig,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    age: int,
    rebuild: Rebuild,
) -> tuple[Selection, ReuseRecord]:
    order = entry.order.long()
    with span("gather"):
        tiles = keys_in_order(key, value, order, entry.mask.kv_layout)
    key, value = (part.tokens for part in tiles)
    heads = [] if entry.stale is None else entry.stale.true_places()
    entry.stale = None
    if heads:
        # Written number by number: copying a list would wait for the device.
        places = torch.cat([torch.full((1,), head, device=query.device) for head in heads])
        tensors = [x.index_select(1, places) for x in (query, key, value)]
        shares = None if entry.shares_order is None else entry.shares_order.index_select(0, places)
        entry.mask.replace_heads(places, rebuild(heads, tensors, shares))
    mask = entry.mask.unpack()
    recall = drift = None
    if config.min_recall is not None and entry.recall is not None:
        due = age % config.check_every == 0
        if heads:
            # A head built anew needs the figure that its later ones are held against.
            first = _recall_of_heads(config, query, key, mask, None if due else places)
            entry.recall = entry.recall.index_copy(1, places, first.index_select(1, places) if due else first)
        if due:
            recall = first if heads else _recall_of_heads(config, query, key, mask)
            drift = (entry.recall - recall).mean(0)
            entry.stale = HostCopy((recall < config.min_recall * entry.recall).any(0))
            recall = recall.mean(0)
    selection = Selection(key, value, mask, order, entry.shares_order, tiles=tiles)
    return selection, ReuseRecord(
        age=age, built=False, kept=True, refreshed_heads=len(heads), recall=recall, drift=drift
    )


def _recall_of_heads(
    config: CachedConfig, query: torch.Tensor, key: torch.Tensor, mask: BlockMask, places: torch.Tensor | None = None
) -> torch.Tensor:
    """Recall `[B, N]` on the sampled rows of the heads at `places`, of all if it is `None`."""
    if places is not None:
        query, key = query.index_select(1, places), key.index_select(1, places)
        if mask.counts.shape[1] > 1:
            indices, counts = mask.indices.index_select(1, places), mask.counts.index_select(1, places)
            mask = BlockMask(indices, counts, mask.q_layout, mask.kv_layout)
    return sampled_recall(query, key, mask, config.sample_tiles, config.sample_rows)


class HostCopy:
    """A small tensor on its way to the host; reading it a step later does not wait in practice.

    Args:
        flags: bool `[H]` on any device.
    """

    def __init__(self, flags: torch.Tensor) -> None:
        self._event = None
        self._host = flags
        if flags.device.type == "cuda":
            self._host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self._host.copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()
            # Of its own device, which need not be the current one.
            self._event.record(torch.cuda.current_stream(flags.device))

    def true_places(self) -> list[int]:
        """Where the flags are true."""
        if self._event is not None:
            self._event.synchronize()
        places: list[int] = self._host.nonzero().flatten().tolist()
        return places
