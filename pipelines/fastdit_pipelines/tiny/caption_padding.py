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
        repeats: How many tokens the last one stands for.
    """

    def __init__(self, processor: Any, repeats: int) -> None:
        self.processor = processor
        self.repeats = repeats

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        """Run the processor with the score offset as its attention mask."""
        bias = hidden_states.new_zeros(1, 1, 1, encoder_hidden_states.shape[1])
        bias[..., -1] = math.log(self.repeats)
        result: torch.Tensor = self.processor(attn, hidden_states, encoder_hidden_states, bias, None)
        return result


@contextmanager
def padded_captions(transformer: WanTransformer3DModel, length: int) -> Iterator[None]:
    """Let captions of `length` tokens, the last one padding, act as captions of `PIPELINE_LENGTH` tokens."""
    originals = [block.attn2.processor for block in transformer.blocks]
    try:
        for block in transformer.blocks:
            block.attn2.processor = RepeatedPadding(block.attn2.processor, PIPELINE_LENGTH - length + 1)
        yield
    finally:
        for block, processor in zip(transformer.blocks, originals, strict=True):
            block.attn2.processor = processor
