"""The transformer of the bundled model: Wan's, told where in the frame each token lies."""

from __future__ import annotations

import math

import torch

# `DiffusionPipeline.from_pretrained` finds the way to load a class by its base, looked up in the class's own module.
from diffusers import ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from torch import nn

__all__ = ["ModelMixin", "PlacedPatchEmbedding", "PlacedWanTransformer3DModel"]

NUM_WAVES = 4


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


class PlacedWanTransformer3DModel(WanTransformer3DModel):  # type: ignore[misc]  # diffusers is untyped here
    """`WanTransformer3DModel` whose tokens know their place in the frame.

    Wan has rotary, that is relative, positions alone: with constant values its self-attention is blind to where a
    token lies. Large models find a layout by comparing regions; a model of this size cannot put "the first object" into
    the upper half without being told which half a token is in.

    Takes the arguments of `WanTransformer3DModel`.
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
