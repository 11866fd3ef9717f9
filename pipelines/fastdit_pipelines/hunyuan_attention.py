"""Joint attention of both HunyuanVideos: video, then text of which a prefix is valid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from fastdit.attend import DenseAttention
from fastdit.errors import UnsupportedModelError
from fastdit_pipelines.dense_backend import dense_attention
from fastdit_pipelines.diffusers_hook import forwarded
from fastdit_pipelines.stand_in import StandIn

# Of the processors of both models.
PARAMETERS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")

Rotary = tuple[torch.Tensor, torch.Tensor]


class TextReader:
    """Valid text tokens of each batch entry, read once in a transformer call for all of its layers."""

    def __init__(self) -> None:
        self._lengths: tuple[int, ...] = ()

    def begin(self, lengths: torch.Tensor, padded: int) -> int:
        """Read the lengths of the call that starts now, which waits for the device.

        Compiled code must not depend on them: it keeps all text, and the session reads them when it runs.

        Args:
            lengths: Valid text tokens `[B]`.
            padded: Text tokens with invalid ones.

        Returns:
            Text tokens that layers attend to: the largest length, in compiled code all.
        """
        if torch.compiler.is_compiling():
            return padded
        self._lengths = tuple(lengths.tolist())
        return max(self._lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the call in progress."""
        return self._lengths


class HunyuanSparseProcessor(StandIn):
    """Joint attention processor of both HunyuanVideos with the attention itself handed to fastdit.

    Sparse calls leave invalid text out instead of masking it, so that no mask is made. Nobody reads what stock
    processors compute for it; here its attention is zero.

    Args:
        original: The processor it stands in for; runs every dense call.
        slot: This layer's view of the session, which knows the valid text of the transformer call in progress.
    """

    # Diffusers writes both on processors; they belong to the original, which runs the dense calls.
    _attention_backend = forwarded("_attention_backend")
    _parallel_config = forwarded("_parallel_config")

    def dense_backend(self) -> DenseAttention:
        """The dense attention that the pipeline is set to."""
        return dense_attention(self._attention_backend)

    # Diffusers drops arguments whose names are not spelt out here.
    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One attention layer, with the signature of `HunyuanVideoAttnProcessor2_0`.

        Args:
            attn: The layer.
            hidden_states: Video `[B, V, H * D]`.
            encoder_hidden_states: Text `[B, T, H * D]`, valid tokens first.
            attention_mask: What the original masks; used by dense calls alone.
            image_rotary_emb: Cosine and sine `[V, D]`, for the video.

        Returns:
            Video and text, in the shapes given.
        """
        if self._parallel_config is not None:
            raise UnsupportedModelError(
                "context parallelism is on: fastdit does not support it yet; call fastdit.disable(pipe) first"
            )
        batch, video_length, _ = hidden_states.shape
        if torch.compiler.is_compiling() and encoder_hidden_states is not None:
            query, key, value = project(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
            out = self.slot.attend(query, key, value)
            return finish(attn, out.flatten(2, 3).type_as(query), video_length, encoder_hidden_states.shape[1])
        forward = self.slot.session.current_forward(self.slot.transformer)
        longest, lengths = (0, None) if forward is None else (forward.grid.text_length, forward.ragged_lengths())
        if encoder_hidden_states is None or self.slot.wants_dense(video_length + longest, batch, attn.heads, lengths):
            dense: tuple[torch.Tensor, torch.Tensor] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return dense
        text = encoder_hidden_states[:, :longest]
        query, key, value = project(attn, hidden_states, text, image_rotary_emb)
        out = self.slot.attend(query, key, value, self.dense_backend(), lengths)
        return finish(attn, out.flatten(2, 3).type_as(query), video_length, encoder_hidden_states.shape[1])


def project(
    attn: Any, video: torch.Tensor, text: torch.Tensor, rotary: Rotary | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[B, V + T, H, D]` after norms and rotary embedding, through the module's own layers.

    Args:
        attn: The layer. Two-stream layers project and norm the text by layers of its own.
        video: `[B, V, H * D]`.
        text: `[B, T, H * D]`.
        rotary: Cosine and sine `[V, D]` for the video, or `None`.
    """
    length = video.shape[1]
    shared = attn.add_q_proj is None
    stream = torch.cat([video, text], 1) if shared else video
    parts = [layer(stream).unflatten(2, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)]
    parts[:2] = [_normed(x, norm) for x, norm in zip(parts, (attn.norm_q, attn.norm_k), strict=False)]
    videos, texts = [x[:, :length] for x in parts], [x[:, length:] for x in parts]
    if rotary is not None:
        videos[:2] = [apply_rotary_emb(x, rotary, sequence_dim=1) for x in videos[:2]]
    if not shared:
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        texts = [layer(text).unflatten(2, (attn.heads, -1)) for layer in added]
        norms = (attn.norm_added_q, attn.norm_added_k)
        texts[:2] = [_normed(x, norm) for x, norm in zip(texts, norms, strict=False)]
    query, key, value = (torch.cat(pair, 1) for pair in zip(videos, texts, strict=True))
    return query, key, value


def _normed(x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
    normed: torch.Tensor = x if norm is None else norm(x)
    return normed


def finish(attn: Any, out: torch.Tensor, video_length: int, text_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output projections where the layer has them; single-stream blocks project after their MLP.

    Args:
        attn: The layer.
        out: Attention over video and valid text `[B, S, H * D]`.
        video_length: Video tokens.
        text_length: Text tokens that the block expects; those that `out` lacks are zero before projection.
    """
    video, text = out[:, :video_length], out[:, video_length:]
    text = F.pad(text, (0, 0, 0, text_length - text.shape[1]))
    if getattr(attn, "to_out", None) is not None:
        video = attn.to_out[1](attn.to_out[0](video))
    if getattr(attn, "to_add_out", None) is not None:
        text = attn.to_add_out(text)
    return video, text
