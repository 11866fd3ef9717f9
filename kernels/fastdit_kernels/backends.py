"""Whether a small operator runs its Triton kernel or its eager twin."""

from __future__ import annotations

import importlib.util
import logging
import os

import torch

from fastdit_kernels.errors import InvalidInputError, KernelUnavailableError
from fastdit_kernels.implementations.triton_configurations import DTYPES

logger = logging.getLogger(__name__)


def triton_unavailable_reason(tensor: torch.Tensor) -> str | None:
    """Why no Triton kernel can take `tensor`; `None` if one can."""
    # Compiled graphs cannot trace the look-up; they are traced where Triton was found before.
    if not torch.compiler.is_compiling() and importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if tensor.dtype not in DTYPES:
        return f"dtype {tensor.dtype} is not supported: Triton kernels take float32, bfloat16 or float16"
    if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a CUDA device, the tensors are on {tensor.device.type}"
    return None


def runs_triton(implementation: str, tensor: torch.Tensor, limit: str | None = None) -> bool:
    """Decide between the Triton kernel and eager PyTorch.

    Args:
        implementation: `"auto"` takes Triton for CUDA tensors it supports, else eager; `"triton"` and `"torch"` run or
            raise.
        tensor: An input that tells device and dtype.
        limit: Why this kernel cannot take these shapes, if it cannot.

    Raises:
        InvalidInputError: Unknown name.
        KernelUnavailableError: Triton was asked for by name and cannot run.
    """
    if implementation not in ("auto", "triton", "torch"):
        raise InvalidInputError(f"implementation={implementation!r} is unknown; accepted are 'auto', 'triton', 'torch'")
    if implementation == "torch":
        return False
    reason = triton_unavailable_reason(tensor) or limit
    if implementation == "triton":
        if reason is not None:
            raise KernelUnavailableError(f"implementation='triton' cannot run here: {reason}. Use 'auto' or 'torch'.")
        return True
    if tensor.device.type != "cuda":
        return False
    if reason is not None:
        logger.debug("auto chose 'torch': %s", reason)
    return reason is None
