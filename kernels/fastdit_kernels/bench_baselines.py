"""Dense attention to compare with: whatever this machine offers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Dense = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

CUDA_BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
# Packages with `flash_attn_func(q, k, v)` on `[B, S, H, D]`.
FLASH_PACKAGES = {"FlashAttention-3": "flash_attn_interface", "FlashAttention-4": "flash_attn.cute"}


def dense_baselines(device: torch.device, dtype: torch.dtype) -> dict[str, Dense]:
    """Name -> dense attention on `[B, H, S, D]`, those installed; whether one takes a shape shows when it is called."""
    if device.type == "cpu":
        return {"SDPA flash (CPU)": F.scaled_dot_product_attention}
    found: dict[str, Dense] = {name: _sdpa(backend) for name, backend in CUDA_BACKENDS.items()}
    found["flex_attention"] = _flex()
    for name, package in FLASH_PACKAGES.items():
        if dtype in (torch.float16, torch.bfloat16) and _is_installed(package):
            found[name] = _flash(package)
    return found


def working_baselines(
    found: dict[str, Dense], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[dict[str, Dense], dict[str, str]]:
    """The dense kernels that take `[B, H, S, D]` of this shape, each called once, and why the others do not."""
    working, left_out = {}, {}
    for name, run in found.items():
        try:
            run(query, key, value)
            working[name] = run
        except (RuntimeError, ValueError, NotImplementedError) as error:
            left_out[name] = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return working, left_out


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _sdpa(backend: SDPBackend) -> Dense:
    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return run


def _flex() -> Dense:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Dense = torch.compile(flex_attention, fullgraph=True)
    return compiled


def _flash(package: str) -> Dense:
    function = importlib.import_module(package).flash_attn_func

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = function(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        tensor: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return tensor.transpose(1, 2)

    return run
