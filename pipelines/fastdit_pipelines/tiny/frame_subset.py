"""Training on a few latent frames of a long clip, at the places in time that they have in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from fastdit.errors import ConfigError
from fastdit.validation import check_fraction

# Rotary positions are relative: a subset of fewer frames cannot tell which of them is the first of the clip.
MIN_FRAMES_WITH_FIRST = 3


@dataclass(frozen=True, kw_only=True)
class SubsetDraw:
    """How the latent frames of a subset are drawn; the rest of the time freely.

    The first latent frame holds one frame of the video where the others hold two: it looks different and has to be
    learnt by itself. Subsets of one or two frames leave it out.

    Args:
        span_share: How often they are spread evenly over the clip, its first and last frame among them.
        neighbour_share: How often they follow on each other.
        first_frame_share: How often, else, the earliest of them is replaced by the first frame of the clip.
    """

    span_share: float = 0.25
    neighbour_share: float = 0.25
    first_frame_share: float = 0.25

    def __post_init__(self) -> None:
        for name in ("span_share", "neighbour_share", "first_frame_share"):
            check_fraction(name, getattr(self, name))
        if self.span_share + self.neighbour_share > 1:
            raise ConfigError(
                f"span_share={self.span_share}, neighbour_share={self.neighbour_share}: accepted is a sum of at most 1"
            )


def draw_frames(num_frames: int, count: int, draw: SubsetDraw, generator: torch.Generator) -> torch.Tensor:
    """Sorted indices of `count` out of `num_frames` frames.

    Args:
        num_frames: Latent frames of the clip.
        count: Frames to draw, fewer than there are.
        draw: How.
        generator: Random stream.

    Returns:
        int64 `[count]`.
    """
    with_first = count >= MIN_FRAMES_WITH_FIRST
    start = 0 if with_first else 1
    spread, first = torch.rand(2, generator=generator).tolist()
    if with_first and spread < draw.span_share:
        return torch.linspace(0, num_frames - 1, count).round().long()
    if spread >= 1 - draw.neighbour_share:
        frames = torch.arange(count) + torch.randint(start, num_frames - count + 1, (), generator=generator)
    else:
        frames = start + torch.randperm(num_frames - start, generator=generator)[:count].sort().values
    if with_first and first < draw.first_frame_share:
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
