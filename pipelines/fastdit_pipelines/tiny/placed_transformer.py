"""The transformer of the bundled model: Wan's, told where in the frame each token lies, at any size of frame."""

from __future__ import annotations

import math

import torch

# `DiffusionPipeline.from_pretrained` finds the way to load a class by its base, looked up in the class's own module.
from diffusers import ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

__all__ = ["InterpolatedRotaryPosEmbed", "ModelMixin", "PlacedPatchEmbedding", "PlacedWanTransformer3DModel"]

NUM_WAVES = 4
ROPE_THETA = 10000.0


def _waves(length: int, like: torch.Tensor) -> torch.Tensor:
    """`[sin(pi k u), cos(pi k u)]` for k = 1..`NUM_WAVES` at the `length` tile centres u in (0, 1): `[length, 8]`."""
    centers = (torch.arange(length, device=like.device, dtype=torch.float32) + 0.5) / length * math.pi
    waves = [wave(k * centers) for k in range(1, NUM_WAVES + 1) for wave in (torch.sin, torch.cos)]
    return torch.stack(waves, -1).to(like.dtype)


class PlacedPatchEmbedding(nn.Module):
    """Patch embedding plus a learned linear map of the patch's place: `conv(x) + place([waves(h), waves(w)])`.

    Places are fractions of the frame, so one map serves every size.

    Args:
        conv: The patch embedding without places.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv
        self.place = nn.Linear(4 * NUM_WAVES, conv.out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Embed latents `[B, C, T, H, W]` as tokens `[B, inner_dim, t, h, w]`."""
        embedded: torch.Tensor = self.conv(hidden_states)
        height, width = embedded.shape[-2:]
        rows = _waves(height, embedded)[:, None].expand(height, width, -1)
        columns = _waves(width, embedded)[None].expand(height, width, -1)
        place: torch.Tensor = self.place(torch.cat([rows, columns], -1))
        return embedded + place.permute(2, 0, 1)[None, :, None]


class InterpolatedRotaryPosEmbed(WanRotaryPosEmbed):  # type: ignore[misc]  # diffusers is untyped here
    """Wan's rotary positions; those of frames larger than the trained ones lie between whole numbers.

    Row or column `i` has the position `(i + 1/2) s - 1/2` with `s = min(1, trained_side / shorter side)`, in tokens:
    position interpolation (Chen et al. 2023, arXiv:2306.15595) on token centres, alike along both sides. Distances that
    were never seen in training put objects where none is asked for; a finer pitch of seen ones does not.

    Args:
        attention_head_dim: Of the transformer.
        patch_size: Latents of a token, `(t, h, w)`.
        max_seq_len: Latent frames that positions are known for.
        trained_side: Tokens along the shorter side, at most, that have whole positions.
    """

    def __init__(
        self, attention_head_dim: int, patch_size: tuple[int, int, int], max_seq_len: int, trained_side: int
    ) -> None:
        super().__init__(attention_head_dim, patch_size, max_seq_len, ROPE_THETA)
        self.trained_side = trained_side

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each `[1, t * h * w, 1, attention_head_dim]`, for latents `[B, C, T, H, W]`."""
        frames, rows, columns = (size // of for size, of in zip(hidden_states.shape[2:], self.patch_size, strict=True))
        if min(rows, columns) <= self.trained_side:
            stock: tuple[torch.Tensor, torch.Tensor] = super().forward(hidden_states)
            return stock
        pitch = self.trained_side / min(rows, columns)
        down = _angles(rows, pitch, self.h_dim, hidden_states.device)
        across = _angles(columns, pitch, self.w_dim, hidden_states.device)
        tables = []
        for in_time, down_one, across_one in zip((self.freqs_cos, self.freqs_sin), down, across, strict=True):
            axes = in_time[:frames, None, None, : self.t_dim], down_one[None, :, None], across_one[None, None]
            places = [axis.to(in_time.dtype).expand(frames, rows, columns, -1) for axis in axes]
            tables.append(torch.cat(places, -1).reshape(1, frames * rows * columns, 1, -1))
        return tables[0], tables[1]


def _angles(length: int, pitch: float, dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[length, dim]` of the places along one side."""
    positions = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * pitch - 0.5
    found: tuple[torch.Tensor, torch.Tensor] = get_1d_rotary_pos_embed(
        dim, positions, ROPE_THETA, use_real=True, repeat_interleave_real=True
    )
    return found


class PlacedWanTransformer3DModel(WanTransformer3DModel):  # type: ignore[misc]  # diffusers is untyped here
    """`WanTransformer3DModel` whose tokens know their place in the frame.

    Wan has rotary, that is relative, positions alone: with constant values its self-attention is blind to where a
    token lies. Large models find a layout by comparing regions; a model of this size cannot put "the first object" into
    the upper half without being told which half a token is in. Frames larger than those of training are seen at a finer
    pitch rather than as larger ones (`InterpolatedRotaryPosEmbed`).

    Takes the arguments of `WanTransformer3DModel`, and `trained_side`: tokens along a side of the default frame.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        in_channels: int = 6,
        out_channels: int = 6,
        text_dim: int = 64,
        freq_dim: int = 128,
        ffn_dim: int = 512,
        num_layers: int = 6,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 256,
        pos_embed_seq_len: int | None = None,
        trained_side: int = 12,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        unplaced: nn.Conv3d = self.patch_embedding  # type: ignore[has-type]
        self.patch_embedding = PlacedPatchEmbedding(unplaced)
        self.rope = InterpolatedRotaryPosEmbed(attention_head_dim, patch_size, rope_max_seq_len, trained_side)
