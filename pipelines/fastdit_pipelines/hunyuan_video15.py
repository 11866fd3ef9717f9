"""HunyuanVideo-1.5: joint attention over video, then image, glyph and prompt tokens, the valid ones of all first.

The stock processor masks rows and columns of invalid text by a mask of all token pairs, made anew in every layer:
12.9 GB at 720p. Sparse calls leave invalid text out, so they make no mask; dense calls are stock.
"""

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
from fastdit_pipelines.hunyuan_video import patched_grid
from fastdit_pipelines.processor_signature import check_signature

PROCESSORS = ("HunyuanVideo15AttnProcessor2_0",)


def valid_text(prompt_mask: torch.Tensor, glyph_mask: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Valid text tokens `[B]`, as the model counts them.

    Args:
        prompt_mask: `[B, T1]`, non-zero for valid tokens.
        glyph_mask: `[B, T2]`, likewise.
        image: Embedding of the condition image `[B, T3, C]`; all zero in text-to-video, and then invalid.
    """
    image_length = image.any() * image.shape[1]
    return prompt_mask.bool().sum(1) + glyph_mask.bool().sum(1) + image_length


class HunyuanVideo15Adapter:
    """Adapter of `HunyuanVideo15Transformer3DModel`: text-to-video and image-to-video."""

    family = "hunyuan_video15"
    transformer_classes = ("HunyuanVideo15Transformer3DModel",)

    def __init__(self) -> None:
        self._text = TextReader()

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`transformer_blocks.<i>.attn` of every block; the text refiner is left alone."""
        blocks: Any = transformer.transformer_blocks
        return [(f"transformer_blocks.{index}.attn", block.attn) for index, block in enumerate(blocks)]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Latents `[B, C, T, H, W]` divided by the patch size, before the valid text; waits for its length.

        The first frame of image-to-video, which is the image's, is always kept.
        """
        config: Any = transformer.config
        prompt_mask = argument(args, kwargs, 3, "encoder_attention_mask")
        glyph_mask = argument(args, kwargs, 6, "encoder_attention_mask_2")
        image = argument(args, kwargs, 7, "image_embeds")
        padded = prompt_mask.shape[1] + glyph_mask.shape[1] + image.shape[1]
        text_length = self._text.begin(valid_text(prompt_mask, glyph_mask, image), padded)
        kept = 1 if config.task_type == "i2v" else 0
        return patched_grid(transformer, argument(args, kwargs, 0, "hidden_states"), text_length, kept, 0)

    def processor(self, original: Any, slot: LayerSlot) -> HunyuanSparseProcessor:
        """The stand-in for one layer."""
        check_signature(original, PROCESSORS, PARAMETERS)
        return HunyuanSparseProcessor(original, slot)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks."""
        return attach_session(transformer, session, number, self.grid, self._text_lengths)

    def _text_lengths(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TextLengths:
        if torch.compiler.is_compiling():
            return valid_text(
                argument(args, kwargs, 3, "encoder_attention_mask"),
                argument(args, kwargs, 6, "encoder_attention_mask_2"),
                argument(args, kwargs, 7, "image_embeds"),
            )
        return self._text.lengths
