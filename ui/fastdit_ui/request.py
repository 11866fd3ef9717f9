"""A request: the values of a form, checked, as one frozen value that the worker carries out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastdit import AttentionConfig, Plan
from fastdit.cli.sparse_options import SparseOptions
from fastdit.config import METHODS
from fastdit.errors import ConfigError, PlanError
from fastdit.plan_config import PlanConfig
from fastdit.validation import check_choice
from fastdit_ui.dial import DEFAULT_POSITION, position_at
from fastdit_ui.settings import MAX_IMAGE_PIXELS, MAX_PROMPT, MAX_STEPS
from fastdit_ui.sizes import Size, settle
from fastdit_ui.state import AppState

SOURCES = ("dial", "expert", "plan")
DENSE = "dense"
EXPERT_METHODS = ("pyramid", "adaptive", "static", "cached")
# Which knobs of the expert panel a method has, beside `dense_steps`, `order` and `min_tokens`.
KNOBS = {
    "pyramid": ("density",),
    "adaptive": ("top_p", "max_density"),
    "static": ("pattern",),
    "cached": ("top_p", "max_density", "refresh_every"),
    DENSE: (),
}
MODEL_ORDER = "the method's own"
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class FormValues:
    """What a form or an API call gives; the order of the fields is that of the components and of the API.

    Args:
        prompt: What to show.
        negative_prompt: What to avoid.
        model: One that the server was started with.
        image: First frame, a PIL image, for image-to-video.
        width: Pixels.
        height: Pixels.
        duration: Seconds.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance; `None` for the model's own.
        seed: Seed of the initial noise.
        random_seed: Whether to draw a seed instead.
        source: Where the method comes from: "dial", "expert" or "plan".
        dial: Position from 0 (fastest) to 5 (dense).
        method: Method of the expert panel.
        density: Share of key tiles (pyramid).
        top_p: Share of the estimated attention mass to keep (adaptive, cached).
        max_density: Largest share of key tiles per query tile (adaptive, cached).
        pattern: What to keep (static).
        refresh_every: Steps after which masks are built anew (cached).
        dense_steps: Leading share of the steps that stays dense.
        order: Token order.
        min_tokens: Shorter sequences stay dense.
        plan_name: A plan of this server.
        plan_file: A plan that was uploaded, instead.
    """

    prompt: str
    negative_prompt: str = ""
    model: str = "tiny"
    image: Any = None
    width: float = 96
    height: float = 96
    duration: float = 4.75
    num_inference_steps: float = 12
    guidance_scale: float | None = None
    seed: float = 0
    random_seed: bool = False
    source: str = "dial"
    dial: float = DEFAULT_POSITION
    method: str = "pyramid"
    density: float = 0.2
    top_p: float = 0.9
    max_density: float = 0.3
    pattern: str = "radial|sink"
    refresh_every: float = 10
    dense_steps: float = 0.4
    order: str = MODEL_ORDER
    min_tokens: float = 2048
    plan_name: str | None = None
    plan_file: str | None = None

    @classmethod
    def of(cls, values: Sequence[Any]) -> Self:
        """From values in the order of the fields."""
        return cls(**dict(zip(FIELDS, values, strict=True)))


FIELDS = tuple(field.name for field in dataclasses.fields(FormValues))


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the worker carries out.

    Args:
        model: One that the server was started with.
        call: Fields of `GenerationSettings`.
        fps: Frames per second of the videos.
        image: First frame, or `None`.
        method: Name of the method, "plan", or "dense".
        config: Its settings; `None` for dense.
        plan_file: The plan that `config` is from, as it is called outside: below the output folder, or its file's name.
        size: What the size became, with notes.
        title: The position of the dial, the method, or the plan's name.
    """

    model: str
    call: dict[str, Any]
    fps: int
    image: Any
    method: str
    config: AttentionConfig | None
    plan_file: str | None
    size: Size
    title: str

    def baseline_key(self) -> str:
        """What decides the dense video: equal keys, equal dense runs."""
        image = None
        if self.image is not None:
            image = hashlib.sha256(self.image.tobytes()).hexdigest() + str(self.image.size)
        return json.dumps([self.model, self.call, image], sort_keys=True)


def resolve(state: AppState, values: FormValues) -> RunRequest:
    """Check what was asked for and settle sizes, seed and method.

    Raises:
        FastDitError: Something is not accepted; the message says what is.
    """
    model = state.settings.check_model(values.model)
    defaults = state.engine.call_defaults(model)
    fps = int(defaults.pop("fps"))
    size = settle(state.engine.shape(model), values.width, values.height, values.duration, fps)
    call = {
        **defaults,
        "prompt": _text("prompt", values.prompt),
        "height": size.height,
        "width": size.width,
        "num_frames": size.num_frames,
        "num_inference_steps": _whole("num_inference_steps", values.num_inference_steps, 1, MAX_STEPS),
        "seed": secrets.randbelow(MAX_SEED) if values.random_seed else _whole("seed", values.seed, 0, MAX_SEED),
    }
    if not call["prompt"]:
        raise ConfigError("prompt is empty: say what the video should show")
    if values.negative_prompt:
        call["negative_prompt"] = _text("negative_prompt", values.negative_prompt)
    if values.guidance_scale is not None:
        call["guidance_scale"] = _number("guidance_scale", values.guidance_scale, 0.0, 50.0)
    if values.image is not None and values.image.width * values.image.height > MAX_IMAGE_PIXELS:
        raise ConfigError(f"image: accepted are at most {MAX_IMAGE_PIXELS // 1_000_000} million pixels")
    title, method, config, plan_file = _method(state, model, values)
    return RunRequest(
        model=model,
        call=call,
        fps=fps,
        image=values.image,
        method=method,
        config=config,
        plan_file=plan_file,
        size=size,
        title=title,
    )


def _method(state: AppState, model: str, values: FormValues) -> tuple[str, str, AttentionConfig | None, str | None]:
    """Title, method, config and the plan's file."""
    check_choice("source", values.source, SOURCES)
    if values.source == "plan":
        plan, title, plan_file = _plan(state, values)
        return title, PlanConfig.method, PlanConfig(plan=plan), plan_file
    if values.source == "dial":
        position = position_at(values.dial)
        title, method, settings = position.name, position.method, position.settings
    else:
        check_choice("method", values.method, (*EXPERT_METHODS, DENSE))
        title = method = values.method
        settings = _expert_settings(values)
    if method == DENSE:
        return title, DENSE, None, None
    defaults = state.engine.method_defaults(model, method)
    return title, method, SparseOptions(**settings).build(method, defaults), None


def _expert_settings(values: FormValues) -> dict[str, Any]:
    """Options of the method, as the command line would be given them."""
    settings: dict[str, Any] = {name: getattr(values, name) for name in KNOBS[values.method]}
    for name in settings.keys() & {"density", "top_p", "max_density"}:
        settings[name] = _number(name, settings[name], 0.0, 1.0)
    if "refresh_every" in settings:
        settings["refresh_every"] = _whole("refresh_every", settings["refresh_every"], 1, MAX_STEPS)
    if values.method == DENSE:
        return {}
    settings["dense_steps"] = _number("dense_steps", values.dense_steps, 0.0, 1.0)
    settings["min_tokens"] = _whole("min_tokens", values.min_tokens, 0, 10**9)
    if values.order != MODEL_ORDER:
        check_choice("order", values.order, (MODEL_ORDER, *METHODS["pyramid"].order_names))
        settings["order"] = values.order
    return settings


def _plan(state: AppState, values: FormValues) -> tuple[Plan, str, str]:
    if values.plan_file:
        path = Path(values.plan_file)
        try:
            return Plan.load(path), path.name, path.name
        except PlanError as error:
            # Where an upload lies is nobody's business.
            raise PlanError(str(error).replace(str(path), path.name)) from error
    if values.plan_name:
        return state.plans.load(values.plan_name), values.plan_name, f"plans/{values.plan_name}.json"
    raise PlanError("no plan is chosen: pick one of this server, or upload the JSON file that fastdit search wrote")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        raise ConfigError(f"{name}: accepted is a text of at most {MAX_PROMPT} characters")
    return value.strip()


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name}={value!r}: accepted is a number from {low:g} to {high:g}")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if _number(name, value, low, high) != int(value):
        raise ConfigError(f"{name}={value!r}: accepted is a whole number from {low} to {high}")
    return int(value)
