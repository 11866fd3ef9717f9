"""What a search's results belong to: the pipeline with its weights, and the arguments of its calls, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdit.api import find_transformers
from fastdit.environment import describe_environment
from fastdit.plan_reading import hash_config

# Of each weight tensor this many values are looked at, evenly spread: another training changes all of them.
SAMPLED_VALUES = 16


def describe_pipeline(pipe: Any) -> dict[str, Any]:
    """Class, configurations and sampled weights of everything that makes frames, and the versions it runs on.

    Args:
        pipe: A pipeline.
    """
    environment = describe_environment()
    parts = getattr(pipe, "components", None) or dict(find_transformers(pipe))
    return {
        "class": type(pipe).__name__,
        "parts": {name: _describe(part) for name, part in sorted(parts.items())},
        "accelerator": environment["accelerator"],
        "packages": environment["packages"],
    }


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of names, shapes, types and devices of all parameters and buffers, and of some values of each."""
    found = hashlib.sha256()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type};".encode())
        # Tensors on "meta" are offloaded elsewhere; their names and shapes have to do.
        if tensor.numel() and tensor.device.type != "meta":
            found.update(_some_values(tensor.detach()))
    return found.hexdigest()


def fingerprint(value: Any) -> Any:
    """Plain data that is the same in every process for equal values: tensors, arrays and images by their contents."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): fingerprint(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(item) for item in value]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{kind} {value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"
    array = np.asarray(value)
    if array.dtype != np.object_:
        return f"{kind} {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    # Functions and other objects: their addresses would change from process to process.
    return f"{kind} {getattr(value, '__qualname__', '')}".strip()


def _describe(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"class": type(part).__name__}
    config = getattr(part, "config", None)
    if isinstance(config, Mapping):
        found["config"] = hash_config(dict(config))
    if isinstance(part, nn.Module):
        found["weights"] = hash_weights(part)
    return found


def _some_values(tensor: torch.Tensor) -> bytes:
    flat = tensor.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(len(flat), SAMPLED_VALUES), dtype=torch.float64).long()
    values = flat[places.to(flat.device)].cpu()
    values = torch.view_as_real(values) if values.is_complex() else values
    content: bytes = values.to(torch.float64).numpy().tobytes()
    return content
