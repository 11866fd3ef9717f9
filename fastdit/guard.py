"""The run-time guard: heads whose recall falls under what was promised are dense for the rest of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdit.config import AttentionConfig, CachedConfig, MixedConfig
from fastdit.config.mixed import Dense, Place
from fastdit.errors import ConfigError
from fastdit.mask_reuse import HostCopy
from fastdit.recall import sampled_recall
from fastdit.step_result import StepResult
from fastdit.validation import check_count, check_fraction

# Rows that searches note recalls on; a guard that looks at the same ones compares like with like.
SAMPLE_TILES = 16
SAMPLE_ROWS = 2
# Recall is a sum of fp32 weights, so a head that keeps everything may miss 1 by rounding.
ROUNDING = 1e-4

Layer = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RecallGuard:
    """Hold heads to a recall while videos are made: `recall >= share * promised`, on sampled query rows.

    Costs `sample_tiles * sample_rows / S` of dense attention in every call that is looked at, plus selection of the
    rows. The verdict is on its way to the host while the step goes on, and is acted on in the next step.

    Args:
        share: Of the promised recall that must be kept.
        min_recall: Promise for all heads; `None` for what the plan notes, each head its own.
        check_every: Steps from one look to the next.
        sample_tiles: Query tiles looked at, evenly spread over the video.
        sample_rows: Rows of each.
    """

    share: float = 0.8
    min_recall: float | None = None
    check_every: int = 1
    sample_tiles: int = SAMPLE_TILES
    sample_rows: int = SAMPLE_ROWS

    def __post_init__(self) -> None:
        check_fraction("guard: share", self.share)
        if self.min_recall is not None:
            check_fraction("guard: min_recall", self.min_recall)
        for name in ("check_every", "sample_tiles", "sample_rows"):
            check_count(f"guard: {name}", getattr(self, name), 1)


@dataclass(frozen=True)
class FallenHead:
    """A head that was made dense.

    Args:
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer in the transformer.
        head: Number of the head in the layer.
        step: From this denoising step on.
    """

    transformer: int
    layer: int
    head: int
    step: int


class HeadGuard:
    """A guard at work in one session.

    Args:
        settings: What it holds heads to.
        config: The method of the session, which may promise recalls.

    Attributes:
        fallen: Heads made dense in the latest run, in the order in which they fell.
        checks: Calls looked at in it.

    Raises:
        ConfigError: Nothing is promised.
    """

    def __init__(self, settings: RecallGuard, config: AttentionConfig) -> None:
        if settings.min_recall is None and config.promised_recall(0, 0, 0) is None:
            raise ConfigError(
                f"guard holds heads to the recall that a plan notes, but {config.method!r} notes none: give "
                "RecallGuard(min_recall=...), or a plan that fastdit.search has made"
            )
        self.settings, self._config = settings, config
        self.fallen: list[FallenHead] = []
        self.checks = 0
        self._run: int | None = None
        self._dense: dict[Layer, frozenset[int]] = {}
        self._underway: dict[Layer, list[tuple[int, HostCopy]]] = {}
        self._limits: dict[tuple[int, int, int, torch.device], torch.Tensor] = {}
        self._configs: dict[tuple[Layer, int, frozenset[int]], AttentionConfig] = {}

    def begin(self, run: int) -> None:
        """Start over if `run` is a new one."""
        if run != self._run:
            self._run, self.checks = run, 0
            self.fallen.clear()
            self._dense.clear()
            self._underway.clear()
            # Other heads fall in every run.
            self._configs.clear()

    def settle(self, config: AttentionConfig, transformer: int, layer: int, phase: int, step: int) -> AttentionConfig:
        """The settings of a layer in a step: those of the phase, with the heads that fell in earlier steps dense."""
        place = transformer, layer
        underway = self._underway.get(place, ())
        if underway and underway[0][0] < step:
            dense = self._dense.get(place, frozenset())
            heads = sorted({head for at, copy in underway if at < step for head in copy.true_places()} - dense)
            self._underway[place] = [(at, copy) for at, copy in underway if at >= step]
            self._dense[place] = dense | frozenset(heads)
            self.fallen += [FallenHead(transformer, layer, head, step) for head in heads]
        dense = self._dense.get(place, frozenset())
        if not dense:
            return config
        key = place, phase, dense
        if key not in self._configs:
            self._configs[key] = densify(config, dense)
        return self._configs[key]

    def look(self, result: StepResult, transformer: int, layer: int, phase: int, step: int) -> None:
        """Measure the recall of one call and send the verdict to the host; does not wait for the device."""
        if step % self.settings.check_every or not result.launches:
            return
        heads, tiles, rows = result.out.shape[2], self.settings.sample_tiles, self.settings.sample_rows
        limits = self._limits_of(transformer, layer, phase, heads, result.out.device)
        fell = torch.zeros(heads, dtype=torch.bool, device=result.out.device)
        for launch in result.launches:
            recall = sampled_recall(launch.query, launch.key, launch.mask, tiles, rows)
            limit = limits if launch.places is None else limits.index_select(0, launch.places)
            low = (recall < limit).any(0)
            fell = low if launch.places is None else fell.index_copy(0, launch.places, low)
        self._underway.setdefault((transformer, layer), []).append((step, HostCopy(fell)))
        self.checks += 1

    def _limits_of(self, transformer: int, layer: int, phase: int, heads: int, device: torch.device) -> torch.Tensor:
        """The least recall of each head, fp32 `[H]`; made once."""
        key = transformer, layer, phase, device
        if key not in self._limits:
            promised: Sequence[float] | None = None
            if self.settings.min_recall is None:
                promised = self._config.promised_recall(transformer, layer, phase)
            promised = [self.settings.min_recall or 0.0] * heads if promised is None else promised
            limits = [self.settings.share * value - ROUNDING for value in promised]
            self._limits[key] = torch.tensor(limits, dtype=torch.float32, device=device)
        return self._limits[key]


def densify(config: AttentionConfig, heads: frozenset[int]) -> AttentionConfig:
    """The settings of a layer with some heads dense.

    Args:
        config: Of one layer.
        heads: Which. Where masks are chosen by the exact mass, which serves all heads at once, all become dense.
    """
    if isinstance(config, CachedConfig):
        if config.mass == "exact":
            return _mixed({}, "dense", config)
        source = densify(config.source, heads)
        if not source.needs_tensors:
            return source
        # What the source had from here stands in its entries by now.
        own = {name: getattr(AttentionConfig(), name) for name in ("q_tile", "kv_tile", "order")}
        return dataclasses.replace(config, source=source, **own)
    table: dict[Place, AttentionConfig | Dense] = {}
    if isinstance(config, MixedConfig):
        table = {head: entry for _, head, entry in config.rows if head is not None}
    for head in heads:
        table[head] = "dense"
    if isinstance(config, MixedConfig):
        return dataclasses.replace(config, heads=table)
    return _mixed(table, config, config)


def _mixed(
    heads: dict[Place, AttentionConfig | Dense], default: AttentionConfig | Dense, shared: AttentionConfig
) -> MixedConfig:
    return MixedConfig(
        heads=heads,
        default=default,
        schedule=shared.schedule,
        min_tokens=shared.min_tokens,
        implementation=shared.implementation,
    )
