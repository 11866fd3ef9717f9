"""A whole run of a pipeline with gradients, from which a search learns what errors of heads do to the frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdit.errors import ConfigError
from fastdit.search.frame_gains import FrameGains


def followed_frames(pipe: Any, followed: FrameGains, **arguments: Any) -> NDArray[np.float32]:
    """Frames `[F, H, W, 3]` in [0, 1] of a run that is gone through backwards before it returns.

    Args:
        pipe: The pipeline, whose transformers `followed` follows.
        followed: What gathers the gains.
        arguments: Of the call, without an output type.

    Raises:
        ConfigError: The pipeline cannot be run with gradients.
    """
    # Diffusers puts `torch.no_grad` around the calls of its pipelines.
    inner = getattr(type(pipe).__call__, "__wrapped__", None)
    if inner is None:
        raise ConfigError(
            f"{type(pipe).__name__} cannot be run with gradients, which gains of frames take: gains='calls' does "
            "without"
        )
    try:
        with torch.enable_grad(), _frozen_weights(pipe), _weights_stay(pipe):
            frames = inner(pipe, **{**arguments, "output_type": "pt"}).frames
            followed.go_back(frames)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "gradients of the frames do not fit into memory: pipe.transformer.enable_gradient_checkpointing() takes "
            "less, and gains='calls' does without"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"the run with gradients, which gains of frames take, failed; gains='calls' does without: {error}"
        ) from error
    shown: NDArray[np.float32] = frames.detach()[0].permute(0, 2, 3, 1).float().cpu().numpy()
    return shown


@contextmanager
def _frozen_weights(pipe: Any) -> Iterator[None]:
    """No weight of the pipeline asks for gradients inside."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    changed = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in changed:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in changed:
            weight.requires_grad_(True)


@contextmanager
def _weights_stay(pipe: Any) -> Iterator[None]:
    """What is offloaded at the end of a call stays to the end of the block: gradients take the decoder's weights."""
    if not hasattr(pipe, "maybe_free_model_hooks"):
        yield
        return
    pipe.__dict__["maybe_free_model_hooks"] = lambda: None
    try:
        yield
    finally:
        del pipe.__dict__["maybe_free_model_hooks"]
        pipe.maybe_free_model_hooks()
