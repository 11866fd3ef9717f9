"""A whole run of a pipeline with gradients, from which a search learns what errors of heads do to the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdit.errors import ConfigError
from fastdit.search.frame_gains import FrameGains
from fastdit.search.own_attribute import own_attribute


def followed_frames(pipe: Any, followed: FrameGains, **arguments: Any) -> NDArray[np.float32]:
    """Frames `[F, H, W, 3]` in [0, 1] of a run that is gone through backwards before it returns.

    Args:
        pipe: The pipeline, whose transformers `followed` follows.
        followed: What gathers the gains.
        arguments: Of the call, without an output type.

    Raises:
        ConfigError: The pipeline cannot be run with gradients.
    """
    inner = check_followed(pipe)
    try:
        with torch.enable_grad(), _frozen_weights(pipe), _weights_stay(pipe), _nothing_kept(pipe):
            frames = inner(pipe, **{**arguments, "output_type": "pt"}).frames
            followed.go_back(frames)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "gradients of the frames do not fit into memory, which the decoder's activations take most of: "
            "gains='calls' (--gains calls) does without; where it is the transformers', their "
            "enable_gradient_checkpointing() takes less"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"the run with gradients, which gains of frames take, failed; gains='calls' (--gains calls) does without: "
            f"{error}"
        ) from error
    shown: NDArray[np.float32] = frames.detach()[0].permute(0, 2, 3, 1).float().cpu().numpy()
    return shown


def check_followed(pipe: Any) -> Callable[..., Any]:
    """The pipeline's call without `torch.no_grad`, which Diffusers puts around it.

    Args:
        pipe: The pipeline.

    Raises:
        ConfigError: It cannot be run with gradients, as far as can be told beforehand.
    """
    inner: Callable[..., Any] | None = getattr(type(pipe).__call__, "__wrapped__", None)
    if inner is None:
        raise ConfigError(
            f"{type(pipe).__name__} cannot be run with gradients, which gains of frames take: gains='calls' "
            "(--gains calls) does without"
        )
    weights = (weight for module in _modules(pipe) for weight in module.parameters())
    if torch.is_inference_mode_enabled() or any(weight.is_inference() for weight in weights):
        raise ConfigError(
            "in torch.inference_mode(), or with weights made in it, nothing has gradients, which gains of frames take: "
            "accepted is torch.no_grad(); gains='calls' (--gains calls) does without"
        )
    return inner


def _modules(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


@contextmanager
def _frozen_weights(pipe: Any) -> Iterator[None]:
    """No weight of the pipeline asks for gradients inside."""
    # By name: offloading exchanges the parameters themselves.
    changed = [
        (part, name)
        for module in _modules(pipe)
        for part in module.modules()
        for name, weight in part.named_parameters(recurse=False)
        if weight.requires_grad
    ]
    for part, name in changed:
        getattr(part, name).requires_grad_(False)
    try:
        yield
    finally:
        for part, name in changed:
            getattr(part, name).requires_grad_(True)


@contextmanager
def _weights_stay(pipe: Any) -> Iterator[None]:
    """What is offloaded at the end of a call stays to the end of the block: gradients take the decoder's weights."""
    if not hasattr(pipe, "maybe_free_model_hooks"):
        yield
        return
    try:
        with own_attribute(pipe, "maybe_free_model_hooks", lambda: None):
            yield
    finally:
        pipe.maybe_free_model_hooks()


@contextmanager
def _nothing_kept(pipe: Any) -> Iterator[None]:
    """What the scheduler remembers of a run has no gradients afterwards, so that their graph is not kept alive."""
    try:
        yield
    finally:
        scheduler = pipe.components.get("scheduler")
        for name, value in vars(scheduler).items() if scheduler is not None else ():
            if isinstance(value, torch.Tensor):
                setattr(scheduler, name, value.detach())
            elif isinstance(value, list):
                value[:] = [one.detach() if isinstance(one, torch.Tensor) else one for one in value]
