"""Transformers of released configurations with random weights, made where they run, and the arguments of a call.

Nothing is fetched. Sizes are those of `real_shapes`; what they leave open (widths of text streams, channels) is that of
the released configurations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn

from fastdit.adapters import find_adapter
from fastdit_pipelines.real_shapes import KNOWN_SHAPES, ModelShape

RESOLUTIONS = {"480p": (480, 832), "720p": (720, 1280)}
# Models with random twins, and the sizes that each was released for.
RANDOM_MODELS: dict[str, dict[str, tuple[int, int]]] = {
    "wan-1.3b": {"480p": RESOLUTIONS["480p"]},
    "wan-14b": RESOLUTIONS,
    "cogvideox-5b": {"480p": (480, 720)},
    "hunyuan-video": {"480p": (544, 960), "720p": RESOLUTIONS["720p"]},
    "hunyuan-video-1.5": {"480p": (480, 848), "720p": RESOLUTIONS["720p"]},
}
# Random weights make attention even over all keys; longer queries make it as uneven as trained ones do.
SHARPNESS = 4.0
HUNYUAN15_TEXT = (1000, 256, 729)  # of the language model, for glyphs, of a condition image, which is absent


def shrink_shape(
    shape: ModelShape, size: tuple[int, int, int], tokens: int, layers: int = 2, heads: int = 2
) -> tuple[ModelShape, tuple[int, int, int]]:
    """A model of the same family that a CPU can run, and the pixels and frames of about so many video tokens.

    Args:
        shape: The true one.
        size: True height, width and frames; all shrink alike.
        tokens: Video tokens of a call.
        layers: Layers to keep, 2 at least.
        heads: Heads to keep; width and text shrink with them.

    Returns:
        The shape, with its width, depth and text reduced and its head_dim as it was; height, width and frames.
    """
    grid = shape.grid(*size)
    share = min(1.0, (tokens / grid.video_length) ** (1 / 3))
    frames, height, width = (max(2, round(share * size)) for size in (grid.frames, grid.height, grid.width))
    text = max(16, round(shape.text_length * share**3)) if shape.text_length else 0
    small = dataclasses.replace(
        shape,
        heads=heads,
        layers=layers,
        ffn_dim=shape.ffn_dim * heads // shape.heads,
        text_length=text,
        cross_text=min(shape.cross_text, 64),
    )
    unit = shape.spatial * shape.patch
    latent_frames = frames * shape.patch_t
    return small, (height * unit, width * unit, (latent_frames - 1) * shape.temporal + 1)


def build_random(shape: ModelShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The transformer of a model with random weights, allocated on the device in its dtype from the start.

    Args:
        shape: A model of `RANDOM_MODELS`, or a shrunken one.
        device: Where to make it; `"meta"` allocates nothing.
        dtype: Of all weights.
        seed: Seed of the weights.
    """
    class_name, settings = CONFIGS[shape.family](shape)
    before = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            with device:
                model: nn.Module = getattr(diffusers, class_name)(**settings)
        finally:
            torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    for _, site in find_adapter(model).sites(model):
        norm: Any = site.norm_q
        norm.weight.mul_(SHARPNESS)
    return model


def weight_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Bytes of the weights of a model, without allocating them."""
    model = build_random(shape, torch.device("meta"), dtype)
    return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize


def call_arguments(
    shape: ModelShape, size: tuple[int, int, int], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> dict[str, Any]:
    """Arguments of one transformer call for one video, all text tokens of the prompt valid.

    Args:
        shape: The model.
        size: Height, width and frames, as `shape.settle_size` gives them.
        device: Where to make them.
        dtype: Of latents and embeddings.
        seed: Seed of the noise.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    arguments = ARGUMENTS[shape.family](shape, _latent_size(shape, size), noise)
    return {"timestep": torch.tensor([500], device=device), "return_dict": False, **arguments}


def _latent_size(shape: ModelShape, size: tuple[int, int, int]) -> tuple[int, int, int]:
    grid = shape.grid(*size)
    return grid.frames * shape.patch_t, grid.height * shape.patch, grid.width * shape.patch


Noise = Callable[..., torch.Tensor]
Size = tuple[int, int, int]


def _wan_config(shape: ModelShape) -> tuple[str, dict[str, Any]]:
    return "WanTransformer3DModel", {
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.head_dim,
        "ffn_dim": shape.ffn_dim,
        "num_layers": shape.layers,
    }


def _wan_call(shape: ModelShape, size: Size, noise: Noise) -> dict[str, Any]:
    return {"hidden_states": noise(1, 16, *size), "encoder_hidden_states": noise(1, shape.cross_text, 4096)}


def _cogvideox_config(shape: ModelShape) -> tuple[str, dict[str, Any]]:
    return "CogVideoXTransformer3DModel", {
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.head_dim,
        "num_layers": shape.layers,
        "max_text_seq_length": shape.text_length,
        "use_rotary_positional_embeddings": True,
    }


def _cogvideox_call(shape: ModelShape, size: Size, noise: Noise) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, height, width = size
    video = noise(1, frames, 16, height, width)
    # The pipeline crops a grid of the released size; of this size are height, width and the positions alone.
    rows, columns = height // shape.patch, width // shape.patch
    rotary = get_3d_rotary_pos_embed(
        shape.head_dim, ((0, 0), (rows, columns)), (rows, columns), frames, device=video.device
    )
    return {
        "hidden_states": video,
        "encoder_hidden_states": noise(1, shape.text_length, 4096),
        "image_rotary_emb": rotary,
    }


def _hunyuan_config(shape: ModelShape) -> tuple[str, dict[str, Any]]:
    double = max(1, shape.layers // 3)
    return "HunyuanVideoTransformer3DModel", {
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.head_dim,
        "num_layers": double,
        "num_single_layers": shape.layers - double,
        "mlp_ratio": shape.ffn_dim / (shape.heads * shape.head_dim),
    }


def _hunyuan_call(shape: ModelShape, size: Size, noise: Noise) -> dict[str, Any]:
    text = noise(1, shape.text_length, 4096)
    return {
        "hidden_states": noise(1, 16, *size),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(text.shape[:2], dtype=torch.long, device=text.device),
        "pooled_projections": noise(1, 768),
        "guidance": torch.full((1,), 6000.0, device=text.device, dtype=text.dtype),
    }


def _hunyuan15_config(shape: ModelShape) -> tuple[str, dict[str, Any]]:
    return "HunyuanVideo15Transformer3DModel", {
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.head_dim,
        "num_layers": shape.layers,
        "mlp_ratio": shape.ffn_dim / (shape.heads * shape.head_dim),
        "task_type": "t2v",
    }


def _hunyuan15_call(shape: ModelShape, size: Size, noise: Noise) -> dict[str, Any]:
    prompt, glyphs, image = (max(1, shape.text_length * part // sum(HUNYUAN15_TEXT)) for part in HUNYUAN15_TEXT)
    text, glyph_text = noise(1, prompt, 3584), noise(1, glyphs, 1472)
    return {
        "hidden_states": noise(1, 65, *size),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(text.shape[:2], dtype=torch.long, device=text.device),
        "encoder_hidden_states_2": glyph_text,
        "encoder_attention_mask_2": torch.ones(glyph_text.shape[:2], dtype=torch.long, device=text.device),
        "image_embeds": torch.zeros(1, image, 1152, device=text.device, dtype=text.dtype),
        # Used in the dtype in which it comes, as the pipeline knows.
        "timestep": torch.full((1,), 500.0, device=text.device, dtype=text.dtype),
    }


CONFIGS: dict[str, Callable[[ModelShape], tuple[str, dict[str, Any]]]] = {
    "wan": _wan_config,
    "cogvideox": _cogvideox_config,
    "hunyuan_video": _hunyuan_config,
    "hunyuan_video15": _hunyuan15_config,
}
ARGUMENTS: dict[str, Callable[[ModelShape, Size, Noise], dict[str, Any]]] = {
    "wan": _wan_call,
    "cogvideox": _cogvideox_call,
    "hunyuan_video": _hunyuan_call,
    "hunyuan_video15": _hunyuan15_call,
}
assert set(CONFIGS) >= {KNOWN_SHAPES[name].family for name in RANDOM_MODELS}
