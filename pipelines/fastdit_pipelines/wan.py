"""Wan 2.1 and 2.2: separate self-attention over video tokens; text only in cross-attention, which is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdit.errors import UnsupportedModelError
from fastdit.grid import VideoGrid
from fastdit.session import LayerSlot, Session
from fastdit_pipelines.dense_backend import dense_attention
from fastdit_pipelines.diffusers_hook import attach_session, forwarded


class WanSparseProcessor:
    """Self-attention processor of Wan with the attention itself handed to fastdit.

    Args:
        original: The processor it stands in for; runs every dense call.
        slot: This layer's view of the session.
    """

    # Diffusers writes both on processors; they belong to the original, which runs the dense calls.
    _attention_backend = forwarded("_attention_backend")
    _parallel_config = forwarded("_parallel_config")

    def __init__(self, original: Any, slot: LayerSlot) -> None:
        self.original = original
        self.slot = slot

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One attention layer, with the signature of `WanAttnProcessor`: `[B, S, H * D]` in and out."""
        if encoder_hidden_states is not None or attention_mask is not None:
            return self._dense(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if self._parallel_config is not None:
            raise UnsupportedModelError(
                "context parallelism is on: fastdit does not support it yet; call fastdit.disable(pipe) first"
            )
        batch, length, _ = hidden_states.shape
        if self.slot.wants_dense(length, batch, attn.heads):
            return self._dense(attn, hidden_states, None, None, rotary_emb)
        query, key, value = project(attn, hidden_states, rotary_emb)
        out = self.slot.attend(query, key, value, dense_attention(self._attention_backend))
        return finish(attn, out.flatten(2, 3).type_as(query))

    def _dense(self, *args: Any) -> torch.Tensor:
        out: torch.Tensor = self.original(*args)
        return out


def project(
    attn: Any, hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[B, S, H, D]` after norms and rotary embedding, through the module's own layers."""
    if getattr(attn, "fused_projections", False):
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query, key = attn.norm_q(query), attn.norm_k(key)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
    if rotary_emb is not None:
        query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
    return query, key, value


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding on interleaved pairs: `(a, b) -> (a cos - b sin, a sin + b cos)`.

    Args:
        x: `[B, S, H, D]`.
        cos: `[1, S, 1, D]`, each value twice in a row.
        sin: `[1, S, 1, D]`, likewise.
    """
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    rotated = torch.empty_like(x)
    rotated[..., 0::2] = first * cos - second * sin
    rotated[..., 1::2] = first * sin + second * cos
    return rotated


def finish(attn: Any, out: torch.Tensor) -> torch.Tensor:
    """Output projection and dropout of the module."""
    projected: torch.Tensor = attn.to_out[1](attn.to_out[0](out))
    return projected


class WanAdapter:
    """Adapter of `WanTransformer3DModel`: Wan 2.1 and 2.2 text-to-video, with one or two transformers."""

    family = "wan"
    transformer_classes = ("WanTransformer3DModel",)

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`blocks.<i>.attn1` of every block."""
        blocks: Any = transformer.blocks
        return [(f"blocks.{index}.attn1", block.attn1) for index, block in enumerate(blocks)]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Latents `[B, C, T, H, W]` divided by the patch size."""
        latents = args[0] if args else kwargs["hidden_states"]
        config: Any = transformer.config
        frames, height, width = (
            size // patch for size, patch in zip(latents.shape[2:], config.patch_size, strict=True)
        )
        return VideoGrid(frames=frames, height=height, width=width)

    def processor(self, original: Any, slot: LayerSlot) -> WanSparseProcessor:
        """The stand-in for one layer."""
        return WanSparseProcessor(original, slot)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks."""
        return attach_session(transformer, session, number, self.grid)
