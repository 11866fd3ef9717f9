"""Wan 2.1 and 2.2 and models built from them: self-attention over video tokens alone.

Text and images enter through cross-attention, which is left alone, or through channels and frames of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdit.errors import UnsupportedModelError
from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session
from fastdit_pipelines.call_arguments import argument
from fastdit_pipelines.diffusers_hook import attach_session
from fastdit_pipelines.processor_signature import check_signature
from fastdit_pipelines.sparse_processor import SparseProcessor

# Animate and ChronoEdit define classes of their own under the same name; SkyReels-V2 has its own name.
PROCESSORS = ("WanAttnProcessor", "SkyReelsV2AttnProcessor")
PARAMETERS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb")


class WanSparseProcessor(SparseProcessor):
    """Self-attention processor of Wan with the attention itself handed to fastdit."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One attention layer, with the signature of `WanAttnProcessor`: `[B, S, H * D]` in and out."""
        if encoder_hidden_states is not None or self.wants_dense(hidden_states, attn.heads, attention_mask):
            out: torch.Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return out
        return finish(attn, self.attend(*project(attn, hidden_states, rotary_emb)))


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
    """Adapter of the Wan transformers, one or two of them, and of ChronoEdit and SkyReels-V2, which are built alike.

    Text-to-video, image-to-video, text-and-image-to-video (TI2V-5B), video-to-video, VACE and Animate.
    """

    family = "wan"
    transformer_classes = (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
        "ChronoEditTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
    )

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`blocks.<i>.attn1` of every block; behind them `vace_blocks.<i>.attn1` of VACE.

        VACE runs its control blocks first. They come last here, so that the layers of the video have the numbers that
        they have in the other Wan models.
        """
        lists: list[tuple[str, Any]] = [(name, getattr(transformer, name, ())) for name in ("blocks", "vace_blocks")]
        return [(f"{name}.{index}.attn1", block.attn1) for name, blocks in lists for index, block in enumerate(blocks)]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Latents `[B, C, T, H, W]` divided by the patch size; the keys of a condition image are always kept.

        A call does not say of reference images of VACE, which are frames before the video, nor of a last frame that is
        given: these count as video.

        Raises:
            UnsupportedModelError: SkyReels-V2 denoises frames at their own pace, or lets them see earlier ones only.
        """
        config: Any = transformer.config
        if kwargs.get("enable_diffusion_forcing") or getattr(config, "num_frame_per_block", 1) > 1:
            raise UnsupportedModelError(
                f"{type(transformer).__name__} runs with diffusion forcing: frames have denoising steps and attention "
                "masks of their own, which is not supported; call fastdit.disable(pipe) to go on"
            )
        latents = argument(args, kwargs, 0, "hidden_states")
        frames, height, width = (
            size // patch for size, patch in zip(latents.shape[2:], config.patch_size, strict=True)
        )
        kept, dense = (min(count, frames - 1) for count in condition_frames(transformer, args, kwargs))
        return VideoGrid(frames=frames, height=height, width=width, kept_frames=kept, dense_frames=dense)

    def processor(self, original: Any, slot: LayerSlot) -> WanSparseProcessor:
        """The stand-in for one layer."""
        check_signature(original, PROCESSORS, PARAMETERS)
        return WanSparseProcessor(original, slot)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks."""
        return attach_session(transformer, session, number, self.grid)


def condition_frames(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """How many leading latent frames belong to the image of image-to-video, and how many of them are nothing else.

    Most models take the image in extra input channels: frame 0 is denoised, with the image beside it. TI2V-5B takes it
    in place of frame 0 and gives every token its timestep; its text-to-video does the latter too, but never passes the
    argument for image tokens, not even as `None`.
    """
    config: Any = transformer.config
    if config.in_channels > (config.out_channels or config.in_channels):
        return 1, 0
    per_token = argument(args, kwargs, 1, "timestep").ndim == 2
    return (1, 1) if per_token and "encoder_hidden_states_image" in kwargs else (0, 0)
