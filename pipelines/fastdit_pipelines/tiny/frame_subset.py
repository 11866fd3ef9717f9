"""Training on a few latent frames of a long clip, at the places in time that they have in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel


def draw_frames(
    num_frames: int, count: int, neighbour_share: float, first_frame_share: float, generator: torch.Generator
) -> torch.Tensor:
    """Sorted indices of `count` out of `num_frames` frames: a run of neighbours, or drawn freely.

    The first latent frame holds one frame of the video where the others hold two: it has to be learnt by itself.

    Args:
        num_frames: Latent frames of the clip.
        count: Frames to draw.
        neighbour_share: How often the frames follow on each other.
        first_frame_share: How often the earliest of them is replaced by the first frame of the clip.
        generator: Random stream.

    Returns:
        int64 `[count]`.
    """
    if torch.rand((), generator=generator) < neighbour_share:
        frames = torch.arange(count) + torch.randint(num_frames - count + 1, (), generator=generator)
    else:
        frames = torch.randperm(num_frames, generator=generator)[:count].sort().values
    if torch.rand((), generator=generator) < first_frame_share:
        frames[0] = 0
    return frames


@contextmanager
def placed_frames(transformer: WanTransformer3DModel, frames: torch.Tensor) -> Iterator[None]:
    """Give the latent frames of a call the rotary positions `frames` instead of 0, 1, 2, ...

    Args:
        transformer: Called inside the context with latents of `len(frames)` frames.
        frames: int64 `[K]`.
    """
    rope = transformer.rope
    tables = rope.freqs_cos, rope.freqs_sin
    try:
        rope.freqs_cos, rope.freqs_sin = (
            torch.cat([_rows(table[:, : rope.t_dim], frames), table[:, rope.t_dim :]], 1) for table in tables
        )
        yield
    finally:
        rope.freqs_cos, rope.freqs_sin = tables


def _rows(table: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """`table` with the rows `frames` in front; rows further back are not read by a call of that many frames."""
    out = table.clone()
    out[: len(frames)] = table[frames.to(table.device)]
    return out
