"""The config that follows a plan, and the check that a plan fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fastdit.config import AttentionConfig
from fastdit.errors import ConfigError, PlanError
from fastdit.grid import VideoGrid
from fastdit.plan import ALL_SPARSE, Plan, TransformerIdentity
from fastdit.plan_reading import hash_config
from fastdit.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class PlanConfig(AttentionConfig):
    """Follow a plan: every head, in every phase of the run, the method that the plan names.

    `fastdit.enable(pipe, plan)` makes one. Schedule and `min_tokens` do not apply: the plan says what is dense.

    Args:
        plan: The plan.
    """

    method: ClassVar[str] = "plan"

    plan: Plan | None = None
    schedule: Schedule = ALL_SPARSE
    min_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.plan, Plan):
            raise ConfigError(f"plan={self.plan!r}: accepted is a fastdit.Plan, e.g. fastdit.Plan.load(path)")
        for name, value in (("schedule", ALL_SPARSE), ("min_tokens", 0)):
            if getattr(self, name) != value:
                raise ConfigError(f"{name}={getattr(self, name)!r} with a plan: leave it out, the plan decides")

    @property
    def _plan(self) -> Plan:
        assert self.plan is not None, "checked at construction"
        return self.plan

    def phase_configs(self, transformer: int, layer: int, num_layers: int) -> tuple[AttentionConfig, ...]:
        """The table of one layer, phase by phase."""
        return tuple(self._plan.layer_config(phase, transformer, layer) for phase in range(len(self._plan.phases)))

    def phase_at(self, step: int, num_inference_steps: int | None) -> int:
        """Phase of a step.

        Raises:
            ConfigError: The number of steps is unknown, and the plan has several phases.
        """
        if num_inference_steps is None:
            if len(self._plan.phases) == 1:
                return 0
            raise ConfigError(
                "the plan has several phases, but the number of steps of this run is unknown (no pipeline scheduler): "
                "enable the pipeline instead of the bare transformer"
            )
        return self._plan.phase_at(step, num_inference_steps)

    def promised_recall(self, transformer: int, layer: int, phase: int) -> tuple[float, ...] | None:
        """The recalls that the plan notes, if it does."""
        recall = self._plan.phases[phase].recall
        return None if recall is None else recall[transformer][layer]

    def given_orders(self, transformer: int, layer: int, phase: int) -> tuple[tuple[str, str] | None, ...] | None:
        """The orders that the plan holds, if it does."""
        orders = self._plan.phases[phase].orders
        return None if orders is None else orders[transformer][layer]

    def check_grid(self, grid: VideoGrid) -> None:
        """Refuse a geometry far from that of the plan, see `Plan.check_grid`."""
        self._plan.check_grid(grid)

    def check_model(self, identities: Sequence[TransformerIdentity]) -> None:
        """Refuse a model that the plan was not made for.

        Args:
            identities: What the pipeline's transformers are, by `identify`.

        Raises:
            PlanError: Names the field that differs.
        """
        expected = self._plan.transformers
        if len(identities) != len(expected):
            raise PlanError(f"transformers: the plan is for {len(expected)}, the pipeline has {len(identities)}")
        for number, (ours, theirs) in enumerate(zip(expected, identities, strict=True)):
            for field in type(ours).model_fields:
                wanted, found = getattr(ours, field), getattr(theirs, field)
                if wanted != found:
                    raise PlanError(
                        f"transformers.{number}.{field}: the plan is for {wanted}, the pipeline has {found}: "
                        "make a plan for this model with fastdit.search"
                    )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"method": self.method, "plan": self._plan.model_dump(mode="json")}


def identify(transformer: nn.Module, sites: Sequence[tuple[str, Any]]) -> TransformerIdentity:
    """What a plan knows a transformer by.

    Args:
        transformer: A model with a `config`.
        sites: Its video self-attention layers, as its adapter lists them; each with `heads`.
    """
    config: Any = transformer.config
    return TransformerIdentity(
        class_name=type(transformer).__name__,
        config_hash=hash_config(dict(config)),
        num_layers=len(sites),
        num_heads=int(sites[0][1].heads),
    )
