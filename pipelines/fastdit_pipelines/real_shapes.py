"""Sequence lengths and sizes of released models: what a call at given pixels and frames hands to self-attention.

Facts of the released configurations, without their weights. Nothing here imports torch or Diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What decides the length and the cost of a video transformer's calls.

    Args:
        name: What `fastdit doctor --model` takes.
        family: Family of the adapter.
        heads: Self-attention heads; the width is `heads * head_dim`.
        head_dim: Width of a head.
        layers: Video self-attention layers of one transformer.
        ffn_dim: Inner width of the feed-forward network.
        height: Pixels, where none are given.
        width: Pixels, likewise.
        num_frames: Frames, likewise.
        num_inference_steps: The pipeline's own default.
        spatial: Pixels per latent, each way.
        temporal: Frames per latent frame, after the first.
        patch: Latents per token, each way.
        patch_t: Latent frames per token.
        text_length: Most text tokens in the self-attention sequence.
        text_first: Whether they come before the video.
        cross_text: Text tokens of cross-attention.
        text_width: Width of the text stream, where it is not that of the video.
        gated: Whether the feed-forward network has a gate, hence three matrices.
        snaps: Whether the pipeline rounds heights and widths down, where they are multiples of `accepts`.
        accepts: See `snaps`.
        transformers: Denoising transformers, which take turns over the steps.
        hub_ids: Repositories with these sizes.
        note: What the lengths depend on beside the size.
    """

    name: str
    family: str
    heads: int
    head_dim: int
    layers: int
    ffn_dim: int
    height: int
    width: int
    num_frames: int
    num_inference_steps: int = 50
    spatial: int = 8
    temporal: int = 4
    patch: int = 2
    patch_t: int = 1
    text_length: int = 0
    text_first: bool = False
    cross_text: int = 0
    text_width: int | None = None
    gated: bool = False
    snaps: bool = False
    accepts: int = 1
    transformers: int = 1
    hub_ids: tuple[str, ...] = ()
    note: str = ""

    def grid(self, height: int, width: int, num_frames: int) -> VideoGrid:
        """Tokens of a call, for sizes that `settle_size` gave."""
        frames = (num_frames - 1) // self.temporal + 1
        unit = self.spatial * self.patch
        return VideoGrid(
            # Where a token spans several latent frames, the pipeline pads them at the front.
            frames=-(-frames // self.patch_t),
            height=height // unit,
            width=width // unit,
            text_length=self.text_length,
            text_first=self.text_first,
        )

    def settle_size(self, height: int, width: int, num_frames: int) -> tuple[tuple[int, int, int], list[str]]:
        """The size that the pipeline will make of what is asked for, and what it changed.

        Args:
            height: Pixels.
            width: Pixels.
            num_frames: Frames.

        Raises:
            ConfigError: The pipeline, or its model, refuses the size; names the nearest that is accepted.
        """
        changes, settled = [], []
        unit = self.spatial * self.patch
        for name, value in (("height", height), ("width", width)):
            snapped = value // unit * unit
            if snapped < unit or (value != snapped and not (self.snaps and value % self.accepts == 0)):
                near = " or ".join(str(size) for size in (snapped, snapped + unit) if size)
                raise ConfigError(f"{name}={value}: {self.name} accepts multiples of {unit} pixels: take {near}")
            if snapped != value:
                changes.append(f"{name} {value} becomes {snapped}, a multiple of {unit}")
            settled.append(snapped)
        if num_frames < 1:
            raise ConfigError(f"num_frames={num_frames}: accepted is a positive integer")
        if self.snaps and self.family == "wan" and num_frames % self.temporal != 1:
            frames = num_frames // self.temporal * self.temporal + 1
        else:
            frames = (num_frames - 1) // self.temporal * self.temporal + 1
        if frames != num_frames:
            changes.append(f"num_frames {num_frames} becomes {frames}, a multiple of {self.temporal} and one more")
        return (settled[0], settled[1], frames), changes

    def attention_flops(self, grid: VideoGrid) -> float:
        """FLOPs of dense self-attention in one call, all layers: `4 S^2 D` of each head, for one video."""
        return 4.0 * grid.length**2 * self.head_dim * self.heads * self.layers

    def other_flops(self, grid: VideoGrid) -> float:
        """FLOPs of the other matrix products of all blocks in one call: projections, feed-forward, cross-attention."""
        width, video, text = self.heads * self.head_dim, grid.video_length, grid.text_length
        matrices = 3 if self.gated else 2
        total = video * (8.0 * width**2 + 2 * matrices * width * self.ffn_dim)
        if self.text_width is None:
            total += text * (8.0 * width**2 + 2 * matrices * width * self.ffn_dim)
        else:
            inner = self.ffn_dim * self.text_width // width
            total += text * self.text_width * (8.0 * width + 2 * matrices * inner)
        if self.cross_text:
            total += 4.0 * (video + self.cross_text) * width**2 + 4.0 * video * self.cross_text * width
        return total * self.layers


WAN = {"family": "wan", "head_dim": 128, "cross_text": 512, "snaps": True, "accepts": 16, "num_frames": 81}
COGVIDEOX = {"family": "cogvideox", "head_dim": 64, "text_length": 226, "text_first": True}
PADDED = "text tokens are at most this many: padding is left out of sparse calls"


def _wan(name: str, heads: int, layers: int, ffn_dim: int, *hub_ids: str, **more: object) -> ModelShape:
    settings = {**WAN, "height": 480, "width": 832, **more}
    return ModelShape(name=name, heads=heads, layers=layers, ffn_dim=ffn_dim, hub_ids=hub_ids, **settings)  # type: ignore[arg-type]


def _cogvideox(name: str, heads: int, layers: int, hub_id: str, **more: object) -> ModelShape:
    settings = {**COGVIDEOX, "height": 480, "width": 720, "num_frames": 49, "hub_ids": (hub_id,), **more}
    return ModelShape(name=name, heads=heads, layers=layers, ffn_dim=4 * 64 * heads, **settings)  # type: ignore[arg-type]


def _ltx(name: str, head_dim: int, layers: int, hub_id: str) -> ModelShape:
    return ModelShape(
        name=name,
        family="ltx",
        heads=32,
        head_dim=head_dim,
        layers=layers,
        ffn_dim=4 * 32 * head_dim,
        height=512,
        width=704,
        num_frames=161,
        spatial=32,
        temporal=8,
        patch=1,
        cross_text=128,
        hub_ids=(hub_id,),
    )


def _hunyuan() -> tuple[ModelShape, ModelShape]:
    first = ModelShape(
        name="hunyuan-video",
        family="hunyuan_video",
        heads=24,
        head_dim=128,
        layers=60,
        ffn_dim=4 * 24 * 128,
        height=720,
        width=1280,
        num_frames=129,
        text_length=256,
        hub_ids=("hunyuanvideo-community/HunyuanVideo",),
        note=PADDED,
    )
    second = ModelShape(
        name="hunyuan-video-1.5",
        family="hunyuan_video15",
        heads=16,
        head_dim=128,
        layers=54,
        ffn_dim=4 * 16 * 128,
        height=720,
        width=1280,
        num_frames=121,
        spatial=16,
        patch=1,
        text_length=1000 + 256 + 729,  # of the language model, for glyphs, of the condition image
        snaps=True,
        note=PADDED,
    )
    return first, second


KNOWN_SHAPES = {
    shape.name: shape
    for shape in (
        _wan("wan-1.3b", 12, 30, 8960, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        _wan("wan-14b", 40, 40, 13824, "Wan-AI/Wan2.1-T2V-14B-Diffusers", height=720, width=1280),
        _wan("wan22-a14b", 40, 40, 13824, "Wan-AI/Wan2.2-T2V-A14B-Diffusers", height=720, width=1280, transformers=2),
        _wan(
            "wan22-5b",
            24,
            30,
            14336,
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            height=704,
            width=1280,
            num_frames=121,
            spatial=16,
        ),
        _cogvideox("cogvideox-2b", 30, 30, "zai-org/CogVideoX-2b"),
        _cogvideox("cogvideox-5b", 48, 42, "zai-org/CogVideoX-5b"),
        _cogvideox(
            "cogvideox1.5-5b", 48, 42, "zai-org/CogVideoX1.5-5B", patch_t=2, height=768, width=1360, num_frames=81
        ),
        *_hunyuan(),
        _ltx("ltx-2b", 64, 28, "Lightricks/LTX-Video"),
        _ltx("ltx-13b", 128, 48, "Lightricks/LTX-Video-0.9.7-dev"),
        ModelShape(
            name="mochi",
            family="mochi",
            heads=24,
            head_dim=128,
            layers=48,
            ffn_dim=4 * 24 * 128 * 2 // 3,
            height=480,
            width=848,
            num_frames=163,
            num_inference_steps=64,
            temporal=6,
            text_length=256,
            text_width=1536,
            gated=True,
            hub_ids=("genmo/mochi-1-preview",),
            note=PADDED,
        ),
    )
}
