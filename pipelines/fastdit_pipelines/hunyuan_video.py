"""HunyuanVideo: joint attention over video, then text padded on the right, in two-stream and single-stream blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session, TextLengths
from fastdit_pipelines.call_arguments import argument
from fastdit_pipelines.diffusers_hook import attach_session
from fastdit_pipelines.hunyuan_attention import PARAMETERS, HunyuanSparseProcessor, TextReader
from fastdit_pipelines.processor_signature import check_signature

PROCESSORS = ("HunyuanVideoAttnProcessor2_0",)


class HunyuanVideoAdapter:
    """Adapter of `HunyuanVideoTransformer3DModel`: text-to-video and image-to-video."""

    family = "hunyuan_video"
    transformer_classes = ("HunyuanVideoTransformer3DModel",)

    def __init__(self) -> None:
        self._text = TextReader()

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`attn` of every two-stream and single-stream block; the text refiner is left alone."""
        return [
            (f"{name}.{index}.attn", block.attn)
            for name in ("transformer_blocks", "single_transformer_blocks")
            for index, block in enumerate(getattr(transformer, name))
        ]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Latents `[B, C, T, H, W]` divided by the patch size, before the valid text; waits for its length.

        The first frame of image-to-video is always kept. With `token_replace` it is the image itself and stays dense.
        """
        config: Any = transformer.config
        mask = argument(args, kwargs, 3, "encoder_attention_mask")
        text_length = self._text.begin(valid_text(mask), mask.shape[1])
        kept = 0 if config.image_condition_type is None else 1
        dense = 1 if config.image_condition_type == "token_replace" else 0
        return patched_grid(transformer, argument(args, kwargs, 0, "hidden_states"), text_length, kept, dense)

    def processor(self, original: Any, slot: LayerSlot) -> HunyuanSparseProcessor:
        """The stand-in for one layer."""
        check_signature(original, PROCESSORS, PARAMETERS)
        return HunyuanSparseProcessor(original, slot)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks."""
        return attach_session(transformer, session, number, self.grid, self._text_lengths)

    def _text_lengths(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TextLengths:
        if torch.compiler.is_compiling():
            return valid_text(argument(args, kwargs, 3, "encoder_attention_mask"))
        return self._text.lengths


def valid_text(mask: torch.Tensor) -> torch.Tensor:
    """Valid tokens `[B]` of a mask `[B, T]`, whose sum the model takes for the length of a prefix."""
    return mask.sum(dim=1, dtype=torch.int)


def patched_grid(
    transformer: nn.Module, latents: torch.Tensor, text_length: int, kept_frames: int, dense_frames: int
) -> VideoGrid:
    """The grid of latents `[B, C, T, H, W]`; a video of one frame keeps none apart.

    Args:
        transformer: Has `patch_size` and `patch_size_t` in its config.
        latents: What it is called with.
        text_length: Valid text tokens, the most of all batch entries.
        kept_frames: See `VideoGrid`.
        dense_frames: See `VideoGrid`.
    """
    config: Any = transformer.config
    frames, height, width = latents.shape[2:]
    frames = frames // config.patch_size_t
    return VideoGrid(
        frames=frames,
        height=height // config.patch_size,
        width=width // config.patch_size,
        text_length=text_length,
        kept_frames=min(kept_frames, frames - 1),
        dense_frames=min(dense_frames, frames - 1),
    )
