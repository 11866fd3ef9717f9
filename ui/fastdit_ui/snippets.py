"""The present settings as Python and as a command, to be copied."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from fastdit import AttentionConfig
from fastdit.config import CachedConfig
from fastdit.plan_config import PlanConfig
from fastdit.schedule import Schedule
from fastdit_ui.request import RunRequest

BUNDLED = ("tiny",)


def as_command(request: RunRequest, *, compare: bool) -> str:
    """The call of `fastdit generate` that makes the same video, or the same comparison."""
    words = ["fastdit", "generate", "--model", request.model]
    for name, value in request.call.items():
        if name != "max_sequence_length":
            words += [f"--{name.replace('_', '-')}", _plain(value)]
    words += ["--fps", str(request.fps)]
    if request.plan_file is not None:
        words += ["--plan", request.plan_file]
    else:
        words += ["--method", request.method]
        for name, value in sorted(_options(request.config).items()):
            words += [f"--{name.replace('_', '-')}", _plain(value)]
    words += ["--compare"] if compare else []
    command = shlex.join([*words, "--output", "out"])
    if request.image is not None:
        command = f"# the command line takes no image, use the Python lines\n{command}"
    return command


def as_python(request: RunRequest) -> str:
    """Lines of Python that make the same video."""
    lines = ["import torch", "from diffusers.utils import export_to_video"]
    if request.model in BUNDLED:
        lines += ["from fastdit_pipelines.loading import load_pipeline"]
        load = f"pipe = load_pipeline({request.model!r})"
    else:
        lines += ["from diffusers import DiffusionPipeline"]
        load = f'pipe = DiffusionPipeline.from_pretrained({request.model!r}, dtype=torch.bfloat16).to("cuda")'
    lines += ["", "import fastdit", "", load]
    if request.plan_file is not None:
        lines += [f"session = fastdit.enable(pipe, {request.plan_file!r})"]
    elif request.config is not None:
        lines += [f"session = fastdit.enable(pipe, {_expression(request.config)})"]
    call = {name: value for name, value in request.call.items() if name != "seed"}
    lines += ["video = pipe(", *(f"    {name}={value!r}," for name, value in call.items())]
    if request.image is not None:
        lines += ["    image=image,  # the first frame, a PIL image"]
    lines += [f'    generator=torch.Generator("cpu").manual_seed({request.call["seed"]}),', '    output_type="np",']
    lines += [").frames[0]", f'export_to_video(video, "video.mp4", fps={request.fps})']
    if request.config is not None:
        lines += ["print(session.summary())"]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _changed(value: Any) -> dict[str, Any]:
    """Fields of a frozen config that are not at their defaults."""
    changed = {}
    for field in dataclasses.fields(value):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if getattr(value, field.name) != default:
            changed[field.name] = getattr(value, field.name)
    return changed


def _expression(value: Any) -> str:
    """A config as Python."""
    if not isinstance(value, (AttentionConfig, Schedule)):
        return repr(str(value)) if type(value).__module__.startswith("fastdit.selectors") else repr(value)
    given = ", ".join(f"{name}={_expression(item)}" for name, item in _changed(value).items())
    return f"fastdit.{type(value).__name__}({given})"


def _options(config: AttentionConfig | None) -> dict[str, Any]:
    """A config as options of the command line."""
    if config is None or isinstance(config, PlanConfig):
        return {}
    options: dict[str, Any] = {}
    source = config.source if isinstance(config, CachedConfig) else None
    if source is not None:
        options = {"source": source.method, **_options(source)}
    for name, value in _changed(config).items():
        if name == "schedule":
            options.update(_changed(value))
        elif name != "source":
            options[name] = value
    # The bundled model has defaults of its own for these, which the command would take.
    schedule = config.schedule
    return {**options, "dense_steps": schedule.dense_steps}
