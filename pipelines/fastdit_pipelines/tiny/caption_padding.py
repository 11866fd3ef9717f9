"""Training on short captions as if they were padded to the pipeline's full length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import WanTransformer3DModel

PIPELINE_LENGTH = 512


class RepeatedPadding:
    """Cross-attention in which the last caption token counts `repeats` times.

    Padding tokens of a caption are all equal, so `ln(repeats)` on the score of one of them gives what `repeats` of
    them would give.

    Args:
        processor: The processor that does the work.
        bias: Score offsets of the caption tokens, `[1, 1, 1, L]`.
    """

    def __init__(self, processor: Any, bias: torch.Tensor) -> None:
        self.processor = processor
        self.bias = bias

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        """Run the processor with the score offsets as its attention mask."""
        bias = self.bias.to(hidden_states)
        result: torch.Tensor = self.processor(attn, hidden_states, encoder_hidden_states, bias, None)
        return result


@contextmanager
def padded_captions(
    transformer: WanTransformer3DModel, length: int, padded_length: int = PIPELINE_LENGTH
) -> Iterator[None]:
    """Let captions of `length` tokens, the last one padding, act as captions of `padded_length` tokens."""
    originals = [block.attn2.processor for block in transformer.blocks]
    bias = torch.zeros(1, 1, 1, length)
    bias[..., -1] = math.log(padded_length - length + 1)
    try:
        for block in transformer.blocks:
            block.attn2.processor = RepeatedPadding(block.attn2.processor, bias)
        yield
    finally:
        for block, processor in zip(transformer.blocks, originals, strict=True):
            block.attn2.processor = processor
