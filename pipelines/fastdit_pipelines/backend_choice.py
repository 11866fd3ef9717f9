"""The fastest exact dense attention backend for a transformer's own calls, by trying them on one of its layers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from fastdit.adapters import find_adapter
from fastdit.spans import now
from fastdit_pipelines.dense_backend import dense_backends

# Exact ones that run without fetching anything; others quantise, or are kernels of the Hub.
CANDIDATES = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "flash", "_flash_3", "xformers")
ROUNDS = 3


def set_fastest_backend(transformer: nn.Module, call: Callable[[], object]) -> dict[str, Any]:
    """Set the self-attention layers to the dense backend that is fastest in one of them.

    A masked call, such as those of the HunyuanVideos, leaves out the backends that take no mask.

    Args:
        transformer: A supported transformer that is not enabled.
        call: Runs it densely, once.

    Returns:
        `name` of the backend; `seconds` of a layer with each; `left_out`, the reasons of the others. Families that call
        PyTorch's attention themselves cannot be set: their `name` says so.
    """
    sites = [site for _, site in find_adapter(transformer).sites(transformer)]
    processors: list[Any] = [site.processor for site in sites]
    if not all(hasattr(processor, "_attention_backend") for processor in processors):
        return {"name": "PyTorch's own choice, which the model calls itself", "seconds": {}, "left_out": {}}
    if not torch.cuda.is_available():
        return {"name": "native", "seconds": {}, "left_out": {}}
    reasons = dense_backends()
    left_out = {name: reason for name in CANDIDATES if (reason := reasons.get(name, "unknown to Diffusers"))}
    usable = [name for name in CANDIDATES if name not in left_out]
    seconds: dict[str, float] = {}
    arguments = _arguments_of(sites[0], call) if len(usable) > 1 else None
    for name in usable if arguments is not None else ():
        processors[0]._attention_backend = AttentionBackendName(name)
        try:
            seconds[name] = _seconds(sites[0], *arguments)  # type: ignore[misc]  # not None here
        except (RuntimeError, ValueError, NotImplementedError) as error:
            left_out[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    best = min(seconds, key=lambda name: seconds[name]) if seconds else usable[0]
    for processor in processors:
        processor._attention_backend = AttentionBackendName(best)
    return {"name": best, "seconds": seconds, "left_out": left_out}


def _arguments_of(site: nn.Module, call: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer is called with."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = site.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return found[0]


@torch.no_grad()
def _seconds(site: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Median seconds of a layer, after one call of warm-up."""
    times = []
    for _ in range(ROUNDS + 1):
        start = now()
        site(*args, **kwargs)
        times.append(now() - start)
    return statistics.median(times[1:])
