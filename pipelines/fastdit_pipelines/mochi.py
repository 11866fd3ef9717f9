"""Mochi: joint attention over video, then text, in two widths; each batch entry has its own number of text tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session
from fastdit_pipelines.call_arguments import argument
from fastdit_pipelines.diffusers_hook import attach_session
from fastdit_pipelines.processor_signature import check_signature
from fastdit_pipelines.stand_in import StandIn

PROCESSORS = ("MochiAttnProcessor2_0",)
PARAMETERS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")

Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ValidText:
    """What a text mask says.

    Args:
        mask: The mask, `[B, T]`, non-zero for valid tokens.
        lengths: Valid tokens of each batch entry.
        order: Valid tokens first, each kind in its order, int64 `[B, T]`; `None` if they are in front already.
    """

    mask: torch.Tensor
    lengths: tuple[int, ...]
    order: torch.Tensor | None


def read_text_mask(mask: torch.Tensor) -> ValidText:
    """Count the valid tokens of a mask; waits for the device."""
    valid = mask != 0
    order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
    moves = (order != torch.arange(order.shape[1], device=order.device)).any().view(1)
    *lengths, any_moves = torch.cat([valid.sum(1), moves.long()]).tolist()
    return ValidText(mask, tuple(lengths), order if any_moves else None)


class TextMaskReader:
    """Reads the text mask of a transformer call once, for all of its layers."""

    def __init__(self) -> None:
        self._last: ValidText | None = None

    def begin(self, mask: torch.Tensor) -> None:
        """Read the mask of the call that starts now."""
        self._last = read_text_mask(mask)

    def read(self, mask: torch.Tensor) -> ValidText:
        """What the mask that a layer was given says."""
        if self._last is None or self._last.mask is not mask:
            self.begin(mask)
        assert self._last is not None, "set by begin"
        return self._last


class MochiSparseProcessor(StandIn):
    """Joint attention processor of Mochi with the attention itself handed to fastdit.

    Args:
        original: The processor it stands in for; runs every dense call.
        slot: This layer's view of the session.
        text: Reads text masks.
    """

    def __init__(self, original: Any, slot: LayerSlot, text: TextMaskReader) -> None:
        super().__init__(original, slot)
        self.text = text

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One attention layer, with the signature of `MochiAttnProcessor2_0`.

        Args:
            attn: The layer.
            hidden_states: Video `[B, V, H * D]`.
            encoder_hidden_states: Text `[B, T, text width]`.
            attention_mask: Valid text tokens `[B, T]`.
            image_rotary_emb: Cosine and sine `[V, H, D / 2]`, for the video.

        Returns:
            Video and text. As in stock Mochi, text has the valid tokens in front, and in the last layer, whose text
            nobody reads, the width of the video.
        """
        text = self.text.read(attention_mask)
        batch, video_length, _ = hidden_states.shape
        text_length = encoder_hidden_states.shape[1]
        if self.slot.wants_dense(video_length + text_length, batch, attn.heads, text.lengths):
            dense: tuple[torch.Tensor, torch.Tensor] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return dense
        if text.order is not None:
            encoder_hidden_states = encoder_hidden_states.take_along_dim(text.order[..., None], 1)
        query, key, value = project(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        # Stock Mochi calls PyTorch's attention whatever backend is set, and so do heads that stay dense here.
        out = self.slot.attend(query, key, value, text_lengths=text.lengths).flatten(2, 3)
        video_out, text_out = out.split((video_length, text_length), 1)
        video_out = attn.to_out[1](attn.to_out[0](video_out))
        if hasattr(attn, "to_add_out"):
            text_out = attn.to_add_out(text_out)
        return video_out, text_out


def project(
    attn: Any, video: torch.Tensor, text: torch.Tensor, rotary: Rotary | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[B, V + T, H, D]` after norms and rotary embedding, through the module's own layers.

    Args:
        attn: The layer.
        video: `[B, V, H * D]`.
        text: `[B, T, text width]`.
        rotary: Cosine and sine `[V, H, D / 2]` for the video, or `None`.
    """
    video_qkv = [layer(video).unflatten(2, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)]
    text_qkv = [
        layer(text).unflatten(2, (attn.heads, -1)) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    ]
    norms = ((attn.norm_q, attn.norm_added_q), (attn.norm_k, attn.norm_added_k))
    for place, (norm, added_norm) in enumerate(norms):
        if norm is not None:
            video_qkv[place] = norm(video_qkv[place])
        if added_norm is not None:
            text_qkv[place] = added_norm(text_qkv[place])
        if rotary is not None:
            video_qkv[place] = rotate(video_qkv[place], *rotary)
    query, key, value = (torch.cat(pair, 1) for pair in zip(video_qkv, text_qkv, strict=True))
    return query, key, value


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding on interleaved pairs in fp32: `(a, b) -> (a cos - b sin, a sin + b cos)`.

    Args:
        x: `[B, S, H, D]`.
        cos: `[S, H, D / 2]`; Mochi's frequencies are learned for each head.
        sin: Likewise.
    """
    first, second = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)


class MochiAdapter:
    """Adapter of `MochiTransformer3DModel`."""

    family = "mochi"
    transformer_classes = ("MochiTransformer3DModel",)

    def __init__(self) -> None:
        self._text = TextMaskReader()

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`transformer_blocks.<i>.attn1` of every block."""
        blocks: Any = transformer.transformer_blocks
        return [(f"transformer_blocks.{index}.attn1", block.attn1) for index, block in enumerate(blocks)]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Latents `[B, C, T, H, W]` divided by the patch size, before the text `[B, L, C]`, invalid tokens included."""
        latents = argument(args, kwargs, 0, "hidden_states")
        text = argument(args, kwargs, 1, "encoder_hidden_states")
        self._text.begin(argument(args, kwargs, 3, "encoder_attention_mask"))
        config: Any = transformer.config
        frames, height, width = latents.shape[2:]
        return VideoGrid(
            frames=frames,
            height=height // config.patch_size,
            width=width // config.patch_size,
            text_length=text.shape[1],
        )

    def processor(self, original: Any, slot: LayerSlot) -> MochiSparseProcessor:
        """The stand-in for one layer."""
        check_signature(original, PROCESSORS, PARAMETERS)
        return MochiSparseProcessor(original, slot, self._text)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks."""
        return attach_session(transformer, session, number, self.grid)
