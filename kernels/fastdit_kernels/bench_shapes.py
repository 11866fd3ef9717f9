"""Attention shapes of the released configurations of the supported models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The self-attention of one model at one resolution.

    Args:
        name: Model, height x width x frames.
        num_heads: Heads.
        length: Tokens, joint text included.
        head_dim: Channels of a head.
    """

    name: str
    num_heads: int
    length: int
    head_dim: int


MODEL_SHAPES = (
    ModelShape("CogVideoX-2B 480x720x49", 30, 17_776, 64),
    ModelShape("CogVideoX-5B 480x720x49", 48, 17_776, 64),
    ModelShape("CogVideoX1.5-5B 768x1360x81", 48, 45_106, 64),
    ModelShape("Wan2.1-1.3B 480x832x81", 12, 32_760, 128),
    ModelShape("Wan2.1-14B 480x832x81", 40, 32_760, 128),
    ModelShape("Wan2.1-14B 720x1280x81", 40, 75_600, 128),
    ModelShape("Wan2.2-TI2V-5B 704x1280x121", 24, 27_280, 128),
    ModelShape("HunyuanVideo 544x960x129", 24, 67_576, 128),
    ModelShape("HunyuanVideo 720x1280x129", 24, 119_056, 128),
    ModelShape("HunyuanVideo-1.5 480x848x121", 16, 51_275, 128),
    ModelShape("HunyuanVideo-1.5 720x1280x121", 16, 113_585, 128),
    ModelShape("LTX-2B 480x704x161", 32, 6_930, 64),
    ModelShape("LTX-13B 480x704x161", 32, 6_930, 128),
    ModelShape("Mochi 480x848x163", 24, 44_776, 128),
)
# A CPU core needs seconds for one head of these; the small ones have the same kinds of length.
CPU_SHAPES = (
    ModelShape("8,192 tokens, 2 heads x 64", 2, 8192, 64),
    ModelShape("8,190 tokens, 1 head x 128", 1, 8190, 128),
)
# Lengths of videos, for CPUs with minutes to spare: asked for by name.
LONG_CPU_SHAPES = (
    ModelShape("16,384 tokens, 1 head x 64", 1, 16_384, 64),
    ModelShape("32,768 tokens, 1 head x 64", 1, 32_768, 64),
)
QUICK_SHAPES = (ModelShape("2,048 tokens, 1 head x 64", 1, 2048, 64),)
