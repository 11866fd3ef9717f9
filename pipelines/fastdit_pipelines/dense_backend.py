"""The dense attention that a pipeline is set to, for heads that stay dense inside a sparse layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn


def dense_attention(backend: Any) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Dense attention on `[B, S, H, D]` as a processor of Diffusers computes it.

    Args:
        backend: The `_attention_backend` of the processor; `None` is the one that Diffusers is set to.
    """
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = partial(
        dispatch_attention_fn, attn_mask=None, dropout_p=0.0, is_causal=False, backend=backend
    )
    return attend
