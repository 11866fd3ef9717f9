"""Plans: which method every head follows in every phase of a run, for one model; data, never code.

A plan is a JSON file. Reading it is strict: unknown or missing fields, wrong types, values out of range, repeated keys
and changed contents are refused with the name of the field.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fastdit.config import AttentionConfig, CachedConfig, MixedConfig, config_from_dict
from fastdit.errors import ConfigError, PlanError
from fastdit.grid import VideoGrid
from fastdit.plan_reading import describe_fault, read_json, sha256
from fastdit.plan_tables import PlanOrders, check_orders, check_shape
from fastdit.schedule import Schedule
from fastdit.whole_files import whole_file

MAX_BYTES = 64 << 20
# How far the number of tokens may be from that of the search, either way: densities are shares, but what a head needs
# changes with length (long sequences need smaller shares), so a plan is not stretched without limit.
TOKEN_RANGE = 2.0
DENSE: Literal["dense"] = "dense"
# A phase decides itself what is dense.
ALL_SPARSE = Schedule(dense_steps=0, dense_layers=())

Place = int | tuple[int | None, int | None]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class TransformerIdentity(_Strict):
    """What a transformer must be for a plan to fit it.

    Args:
        class_name: Its class.
        config_hash: `hash_config` of its configuration.
        num_layers: Video self-attention layers.
        num_heads: Heads of each.
    """

    class_name: Name
    config_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    num_layers: Annotated[int, Field(ge=1, le=4096)]
    num_heads: Annotated[int, Field(ge=1, le=4096)]


class PlanGrid(_Strict):
    """Geometry a plan was searched at; the fields of `VideoGrid`."""

    frames: Count
    height: Count
    width: Count
    text_length: Annotated[int, Field(ge=0, le=1_000_000)]

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return self.frames * self.height * self.width + self.text_length


class Phase(_Strict):
    """A range of denoising steps with its table.

    Args:
        until: End of the range as a share of the run; it begins where the phase before ends.
        refresh_every: Masks are reused for this many steps; 1 builds them in every step.
        modes: Name of the mode of each head, `[transformer][layer][head]`.
        density: Share of scores that the mode was measured to compute, likewise.
        error: What it was predicted to add to the mean squared error of the frames, likewise.
        recall: Recall it was measured to have on sampled rows, likewise, which a guard may hold it to; `None` if that
            was not measured.
        orders: Orders of queries and of keys that a head takes, likewise, one of its mode's `order_pairs`; `None` for
            those that the mode has, or settles in the run if it has several.
    """

    until: Annotated[float, Field(gt=0, le=1)]
    refresh_every: Annotated[int, Field(ge=1, le=10_000)]
    modes: tuple[tuple[tuple[Name, ...], ...], ...]
    density: tuple[tuple[tuple[Share, ...], ...], ...]
    error: tuple[tuple[tuple[Amount, ...], ...], ...]
    recall: tuple[tuple[tuple[Share, ...], ...], ...] | None = None
    orders: tuple[tuple[tuple[PlanOrders | None, ...], ...], ...] | None = None


class PlanPoint(_Strict):
    """One corner of the front that a search found: summed cost (dense is 1) and predicted error."""

    cost: Amount
    error: Amount


class Plan(_Strict):
    """The table `(phase, transformer, layer, head) -> mode`, with what it was made for and what it promises.

    Args:
        format: Always `"fastdit-plan"`.
        version: Of the format.
        transformers: What the pipeline's transformers must be.
        grid: Geometry it was searched at.
        num_inference_steps: Steps of the runs it was searched with; phases are shares, so that it carries over to
            other numbers of steps.
        modes: `"dense"`, or the settings of a method as `AttentionConfig.to_dict` gives them, by name.
        phases: In order; the last one ends at 1.
        promise: What was asked for, e.g. `{"min_psnr": 30.0}`.
        measured: What was measured in verification, e.g. `{"psnr": 31.2, "density": 0.21}`.
        predicted_error: By the tables of the search.
        predicted_cost: Share of dense attention's cost, by the cost model.
        front: Corners of the front the plan was taken from.
        environment: What it was made on.
    """

    format: Literal["fastdit-plan"] = "fastdit-plan"
    version: Annotated[int, Field(ge=1, le=1)] = 1
    transformers: Annotated[tuple[TransformerIdentity, ...], Field(min_length=1, max_length=8)]
    grid: PlanGrid
    num_inference_steps: Count
    modes: Annotated[dict[Name, Literal["dense"] | dict[str, Any]], Field(min_length=1, max_length=1000)]
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=64)]
    promise: dict[Name, float] = {}
    measured: dict[Name, float] = {}
    predicted_error: Amount
    predicted_cost: Amount
    front: Annotated[tuple[PlanPoint, ...], Field(max_length=10_000)] = ()
    environment: dict[Name, str] = {}

    @field_validator("modes", mode="after")
    @classmethod
    def _as_json(cls, modes: dict[str, Any]) -> dict[str, Any]:
        # Settings may come with tuples, a file has lists.
        plain: dict[str, Any] = json.loads(json.dumps(modes))
        return plain

    @model_validator(mode="after")
    def _check(self) -> Self:
        configs = {name: _mode_config(name, mode) for name, mode in self.modes.items()}
        kernels = {config.implementation for config in configs.values() if isinstance(config, AttentionConfig)}
        if len(kernels) > 1:
            raise ValueError(f"modes: implementation is {' and '.join(sorted(kernels))}: accepted is one for all")
        cached = sorted(name for name, config in configs.items() if isinstance(config, CachedConfig))
        if cached and any(phase.refresh_every > 1 for phase in self.phases):
            raise ValueError(f"phases: refresh_every with modes.{cached[0]}, which reuses masks itself: accepted is 1")
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(f"phases: until={ends}: accepted are rising shares that end with 1.0")
        pairs = {
            name: config.order_pairs if isinstance(config, AttentionConfig) else () for name, config in configs.items()
        }
        shape = [(one.num_layers, one.num_heads) for one in self.transformers]
        for number, phase in enumerate(self.phases):
            for name in ("modes", "density", "error", "recall", "orders"):
                table = getattr(phase, name)
                if table is not None:
                    check_shape(f"phases.{number}.{name}", table, shape)
            unknown = {name for table in phase.modes for row in table for name in row} - configs.keys()
            if unknown:
                raise ValueError(f"phases.{number}.modes: {min(unknown)!r} is not among the modes")
            if phase.orders is not None:
                check_orders(f"phases.{number}.orders", phase.orders, phase.modes, pairs)
        return self

    @property
    def keeps_promise(self) -> bool | None:
        """Whether what was measured reaches what was asked for; `None` without a promise of quality."""
        for name, value in self.promise.items():
            if name.startswith("min_"):
                return self.measured.get(name.removeprefix("min_"), -1.0) >= value
        return None

    def phase_at(self, step: int, num_inference_steps: int) -> int:
        """Number of the phase that a step belongs to: the first that ends after `step / num_inference_steps`.

        Args:
            step: From 0.
            num_inference_steps: Of the run.
        """
        # The slack keeps rounding from moving the border between phases by a step.
        share = min(step, num_inference_steps - 1) / num_inference_steps + 1e-9
        return next(number for number, phase in enumerate(self.phases) if share < phase.until)

    def layer_config(self, phase: int, transformer: int, layer: int) -> AttentionConfig:
        """The settings of one layer in one phase.

        Args:
            phase: Number of the phase.
            transformer: Number of the transformer in the pipeline.
            layer: Number of the layer.
        """
        part = self.phases[phase]
        heads: dict[Place, AttentionConfig | Literal["dense"]] = {
            head: _mode_config(name, self.modes[name]) for head, name in enumerate(part.modes[transformer][layer])
        }
        mixed = MixedConfig(heads=heads, default=DENSE, schedule=ALL_SPARSE, min_tokens=0)
        if part.refresh_every == 1 or not mixed.needs_tensors:
            return mixed
        return CachedConfig(source=mixed, refresh_every=part.refresh_every)

    def check_grid(self, grid: VideoGrid) -> None:
        """Refuse a geometry that is too far from that of the search.

        Raises:
            PlanError: Names both lengths.
        """
        low, high = self.grid.length / TOKEN_RANGE, self.grid.length * TOKEN_RANGE
        if not low <= grid.length <= high:
            raise PlanError(
                f"grid: the plan was made at {self.grid.length} tokens, the call has {grid.length}: accepted are "
                f"{low:.0f} to {high:.0f}; make a plan at this size with fastdit.search"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            OutputError: The place cannot be written.
        """
        data = {**self.to_dict(), "digest": self.digest()}
        with whole_file(Path(path)) as partial:
            partial.write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, check_digest: bool = True) -> Plan:
        """Read a plan, strictly.

        Args:
            path: A file that `save` wrote.
            check_digest: Refuse a file whose contents were changed; switch it off for plans edited by hand.

        Raises:
            PlanError: The file is missing, damaged, too large, of another format, or out of range; names the field.
        """
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise PlanError(f"plan {name!r} cannot be read: {error.strerror or error}") from error
        if len(content) > MAX_BYTES:
            raise PlanError(f"plan {name!r} is larger than {MAX_BYTES >> 20} MiB: this is not a plan")
        return cls.parse(content, name, check_digest=check_digest)

    @classmethod
    def parse(cls, content: bytes, name: str = "plan", *, check_digest: bool = True) -> Plan:
        """As `load`, from the bytes of a file; `name` is for messages."""
        data = read_json(content, name)
        digest = data.pop("digest", None)
        if data.keys() < cls.model_fields.keys():
            missing = sorted(cls.model_fields.keys() - data.keys())
            raise PlanError(f"plan {name!r}: {', '.join(missing)}: missing")
        try:
            plan = cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            raise PlanError(f"plan {name!r}: {describe_fault(error)}") from error
        if check_digest and digest != plan.digest():
            raise PlanError(
                f"plan {name!r}: digest: the contents were changed after the plan was saved; if that was on purpose, "
                "load it with check_digest=False"
            )
        return plan

    def digest(self) -> str:
        """SHA-256 of the contents."""
        return sha256(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The contents as plain data, without recalls and orders where there are none."""
        data = self.model_dump(mode="json")
        for phase in data["phases"]:
            for name in ("recall", "orders"):
                if phase[name] is None:
                    del phase[name]
        return data


def _mode_config(name: str, mode: Any) -> AttentionConfig | Literal["dense"]:
    if mode == DENSE:
        return DENSE
    try:
        config = config_from_dict(mode)
    except (ConfigError, TypeError) as error:
        raise ValueError(f"modes.{name}: {error}") from error
    if isinstance(config, MixedConfig) or (isinstance(config, CachedConfig) and config.mass != "source"):
        raise ValueError(f"modes.{name}: method {config.method!r}: accepted is a method for single heads")
    if (config.schedule, config.min_tokens) != (ALL_SPARSE, 0):
        raise ValueError(f"modes.{name}: schedule and min_tokens: accepted are no dense steps or layers, and 0")
    return config
