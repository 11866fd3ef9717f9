"""The dense attention that a pipeline is set to, for heads that stay dense inside a sparse layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import dispatch_attention_fn

# Of torch itself, so that the check of packages says nothing of them.
NEEDS_GPU = ("_native_cudnn", "_native_efficient")


def dense_attention(backend: Any) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Dense attention on `[B, S, H, D]` as a processor of Diffusers computes it.

    Args:
        backend: The `_attention_backend` of the processor; `None` is the one that Diffusers is set to.
    """
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = partial(
        dispatch_attention_fn, attn_mask=None, dropout_p=0.0, is_causal=False, backend=backend
    )
    return attend


def dense_backends() -> dict[str, str | None]:
    """Dense attention backends of Diffusers, each with the reason why it cannot be used here, `None` where it can.

    Of backends that are kernels of the Hub only the package is looked for; nothing is fetched.
    """
    found: dict[str, str | None] = {}
    for backend in attention_dispatch.AttentionBackendName:
        reason = None
        if not torch.cuda.is_available() and backend.value in NEEDS_GPU:
            reason = "needs a CUDA device"
        else:
            try:
                attention_dispatch._check_attention_backend_requirements(backend)
            except RuntimeError as error:
                reason = str(error)
        found[backend.value] = reason
    return found
