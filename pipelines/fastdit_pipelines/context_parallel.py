"""Sparse attention inside Diffusers' own context parallelism: every process has some heads of the whole sequence."""

from __future__ import annotations

from typing import Any

import torch

from fastdit.attend import DenseAttention
from fastdit.config import CachedConfig, MixedConfig
from fastdit.errors import UnsupportedModelError
from fastdit.layer_slot import LayerSlot


def check_parallel(parallel: Any, slot: LayerSlot) -> int:
    """The number of processes that share a sequence, 1 without context parallelism.

    Args:
        parallel: `_parallel_config` of the processor.
        slot: The layer.

    Raises:
        UnsupportedModelError: Another kind of parallelism, sequences that do not divide, or a table of heads.
    """
    if parallel is None:
        return 1
    context = getattr(parallel, "context_parallel_config", None)
    if context is None:
        raise UnsupportedModelError(
            f"{type(parallel).__name__} without context parallelism is on, such as tensor parallelism: accepted is "
            "ContextParallelConfig(ulysses_degree=...); or call fastdit.disable(pipe)"
        )
    if context.ring_degree > 1:
        raise UnsupportedModelError(
            f"context parallelism with ring_degree={context.ring_degree}: in a ring no process sees all keys, so none "
            "can choose among them; use ContextParallelConfig(ulysses_degree=...) or call fastdit.disable(pipe)"
        )
    if getattr(context, "ulysses_anything", False):
        raise UnsupportedModelError(
            "context parallelism with ulysses_anything=True is not supported: use ContextParallelConfig("
            "ulysses_degree=...) at a size whose tokens divide by it, or call fastdit.disable(pipe)"
        )
    methods = (config.source if isinstance(config, CachedConfig) else config for config in slot.configs)
    if any(isinstance(method, MixedConfig) for method in methods):
        raise UnsupportedModelError(
            "context parallelism with MixedConfig or a plan: a process has a share of the heads and the table counts "
            "them all; use one method for all heads, or call fastdit.disable(pipe)"
        )
    degree: int = context.ulysses_degree
    return degree


def attend_ulysses(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slot: LayerSlot,
    dense: DenseAttention,
    parallel: Any,
) -> torch.Tensor:
    """Sparse attention between Diffusers' two exchanges, from tokens to heads and back.

    Args:
        query: `[B, S / P, H, D]`, the part of the sequence that this process has, of all heads.
        key: Likewise.
        value: Likewise.
        slot: The layer; it is given `[B, S, H / P, D]`.
        dense: The pipeline's dense attention.
        parallel: `_parallel_config` of the processor.

    Returns:
        `[B, S / P, H, D]`.
    """
    # Private and not in every release: only who uses context parallelism needs it.
    from diffusers.models.attention_dispatch import _templated_context_parallel_attention

    def forward_op(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        return slot.attend(query, key, value, dense)

    out: torch.Tensor = _templated_context_parallel_attention(
        query,
        key,
        value,
        None,
        0.0,
        False,
        None,
        False,
        False,
        forward_op=forward_op,
        backward_op=None,
        _parallel_config=parallel,
    )
    return out
