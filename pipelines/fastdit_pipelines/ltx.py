"""LTX-Video: self-attention over video tokens alone, rotary embedding over all heads at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session
from fastdit_pipelines.call_arguments import argument
from fastdit_pipelines.diffusers_hook import attach_session
from fastdit_pipelines.ltx_coordinates import CoordinateReader
from fastdit_pipelines.processor_signature import check_signature
from fastdit_pipelines.sparse_processor import SparseProcessor

PROCESSORS = ("LTXVideoAttnProcessor",)
PARAMETERS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")


class LTXSparseProcessor(SparseProcessor):
    """Self-attention processor of LTX-Video with the attention itself handed to fastdit."""

    # `LTXAttention` drops arguments whose names it does not find here, so all are spelled out.
    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One attention layer, with the signature of `LTXVideoAttnProcessor`: `[B, S, H * D]` in and out."""
        if encoder_hidden_states is not None or self.wants_dense(hidden_states, attn.heads, attention_mask):
            out: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return out
        out = self.attend(*project(attn, hidden_states, image_rotary_emb))
        projected: torch.Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


def project(
    attn: Any, hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[B, S, H, D]` after norms and rotary embedding, through the module's own layers."""
    query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query, key = attn.norm_q(query), attn.norm_k(key)
    if rotary_emb is not None:
        query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
    return query, key, value


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in fp32 on interleaved pairs of all heads: `(a, b) -> (a cos - b sin, b cos + a sin)`.

    Args:
        x: `[B, S, H * D]`.
        cos: `[B, S, H * D]`, each value twice in a row.
        sin: `[B, S, H * D]`, likewise.
    """
    first, second = x.unflatten(2, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


class LTXAdapter:
    """Adapter of `LTXVideoTransformer3DModel`: text-to-video, image-to-video, and with several conditions."""

    family = "ltx"
    transformer_classes = ("LTXVideoTransformer3DModel",)

    def __init__(self) -> None:
        self._coordinates = CoordinateReader()

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`transformer_blocks.<i>.attn1` of every block."""
        blocks: Any = transformer.transformer_blocks
        return [(f"transformer_blocks.{index}.attn1", block.attn1) for index, block in enumerate(blocks)]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """The latents arrive packed as `[B, S, C]`; their sizes, or coordinates, are arguments of their own.

        Condition images take the place of frame 0 or stand before the video, and every token has its timestep,
        `[B, S]`. These frames stay dense, keys and queries.
        """
        coordinates, timestep = argument(args, kwargs, 8, "video_coords"), argument(args, kwargs, 2, "timestep")
        before = 0
        if coordinates is None:
            names = ("num_frames", "height", "width")
            frames, height, width = (argument(args, kwargs, place, name) for place, name in enumerate(names, start=4))
        else:
            frames, height, width, before = self._coordinates.read(coordinates)
        # A condition in place of frame 0 cannot be told from one that stands before it without asking the device.
        given = before + int(timestep.ndim == 2 and timestep.shape[1] > 1)
        given = min(given, frames - 1)
        return VideoGrid(frames=frames, height=height, width=width, kept_frames=given, dense_frames=given)

    def processor(self, original: Any, slot: LayerSlot) -> LTXSparseProcessor:
        """The stand-in for one layer."""
        check_signature(original, PROCESSORS, PARAMETERS)
        return LTXSparseProcessor(original, slot)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks."""
        return attach_session(transformer, session, number, self.grid)
