"""`fastdit bench capture`: queries, keys and values of a dense run, for `fastdit bench selectors --captured`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from rich.console import Console

from fastdit.adapters import find_adapter
from fastdit.api import find_transformers
from fastdit.capture import AttentionCapture, CapturedCall, save_calls
from fastdit.cli.call_options import DEFAULT_VIDEO, VideoOptions
from fastdit.cli.generate import video_settings
from fastdit.errors import ConfigError

PROMPTS = ("a red circle moving left on a dark background", "a green square moving up on a white background")
DtypeName = Literal["float32", "float16", "bfloat16"]
# Two thousand tokens: the smallest size at which fastdit would skip anything.
TINY_SIZE = "2k"


def capture(
    *,
    output: Path,
    model: str = "tiny",
    prompts: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = PROMPTS,
    steps: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    layers: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    heads: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    dtype: DtypeName | None = None,
    video: VideoOptions = DEFAULT_VIDEO,
) -> None:
    """Run a model densely and write queries, keys and values of its self-attention to one file.

    Args:
        output: File to write, e.g. heads.pt.
        model: "tiny", a Diffusers folder, or a Hub id.
        prompts: What to show, one run each.
        steps: Denoising steps to keep, from 0; default one early, one in the middle and one late.
        layers: Layers to keep, from 0; default the first, the middle and the last one.
        heads: Heads to keep of each layer, from 0; default all.
        dtype: What to store; default what the model computes in.
        video: Arguments of the pipeline call; the bundled model makes about 2,000 tokens by default.
    """
    calls = capture_calls(model, prompts, steps, layers, video, heads, dtype)
    save_calls(calls, output)
    first = calls[0]
    Console().print(
        f"{output}: {len(calls)} calls of {first.query.shape[0]} heads, {first.grid.length} tokens, "
        f"head_dim {first.query.shape[-1]}"
    )


def capture_calls(
    model: str,
    prompts: Sequence[str],
    steps: Sequence[int],
    layers: Sequence[int],
    video: VideoOptions,
    heads: Sequence[int] = (),
    dtype: DtypeName | None = None,
) -> list[CapturedCall]:
    """The calls that `capture` keeps; arguments are its own."""
    from fastdit_pipelines.bundled_models import BUNDLED_MODELS
    from fastdit_pipelines.generation import generate, steps_of
    from fastdit_pipelines.loading import load_pipeline

    if model in BUNDLED_MODELS:
        size = BUNDLED_MODELS[model].defaults("sizes")[TINY_SIZE]
        unset = {name: value for name, value in size.items() if getattr(video, name) is None}
        video = dataclasses.replace(video, **unset)
    if not prompts:
        raise ConfigError("prompts is empty: give at least one")
    settings = [video_settings(model, prompt, video)[0] for prompt in prompts]
    pipe = load_pipeline(model)
    total = steps_of(pipe, settings[0]) or 1
    chosen_steps = _chosen("steps", steps, total, [total // 5, total // 2, total * 9 // 10])
    depth = min(len(find_adapter(module).sites(module)) for _, module in find_transformers(pipe))
    chosen_layers = _chosen("layers", layers, depth, [0, depth // 2, depth - 1])
    stored = None if dtype is None else getattr(torch, dtype)
    calls: list[CapturedCall] = []
    for setting in settings:
        with AttentionCapture(pipe, chosen_steps, chosen_layers, heads or None, stored) as probe:
            generate(pipe, setting, "capture")
        calls += probe.calls
    return calls


def _chosen(name: str, given: Sequence[int], total: int, default: list[int]) -> list[int]:
    chosen = sorted(set(given or default))
    if chosen[0] < 0 or chosen[-1] >= total:
        raise ConfigError(f"{name}={chosen}: accepted are numbers from 0 to {total - 1}")
    return chosen
