"""The shape of a model from the configurations in its folder or repository; weights are neither read nor fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdit.errors import ModelLoadError, UnsupportedModelError
from fastdit_pipelines.bundled_models import BUNDLED_MODELS, model_defaults, model_folder
from fastdit_pipelines.real_shapes import KNOWN_SHAPES, ModelShape

Read = Callable[[str], dict[str, Any]]


def find_shape(model: str) -> ModelShape:
    """The shape of a model.

    Args:
        model: A name of `KNOWN_SHAPES`, `"tiny"`, a Diffusers folder, or a Hub id. Of a Hub id that is not known, the
            configurations alone are fetched, a few kilobytes.

    Raises:
        ModelLoadError: There is no such model, or its configurations cannot be read.
        UnsupportedModelError: Its transformer is of no known family.
    """
    if model in KNOWN_SHAPES:
        return KNOWN_SHAPES[model]
    for shape in KNOWN_SHAPES.values():
        if model in shape.hub_ids:
            return shape
    folder = model_folder(model)
    if folder.exists():
        return read_shape(model, lambda name: _read_file(folder / name))
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        known = ", ".join((*BUNDLED_MODELS, *KNOWN_SHAPES))
        raise ModelLoadError(f"model {model!r} is unknown; accepted are {known}, a Diffusers folder, or a Hub id")
    return read_shape(model, lambda name: _read_file(_fetch(model, name)))


def read_shape(model: str, read: Read) -> ModelShape:
    """The shape of a pipeline.

    Args:
        model: Its name, for messages and the shape.
        read: Gives the contents of a JSON file of its folder.
    """
    index = read("model_index.json")
    class_name = (index.get("transformer") or [None, None])[1]
    if class_name not in READERS:
        raise UnsupportedModelError(
            f"model {model!r}: transformer {class_name} is of no known family; known are {', '.join(sorted(READERS))}"
        )
    try:
        config, vae = read("transformer/config.json"), read("vae/config.json")
        settings = READERS[class_name](config, vae)
        heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
        transformers = 1 + ((index.get("transformer_2") or [None, None])[1] is not None)
        settings = {"heads": heads, "head_dim": head_dim, "ffn_dim": 4 * heads * head_dim, **settings}
        call = model_defaults(model)
        for name in ("height", "width", "num_frames", "num_inference_steps"):
            if name in call:
                settings[name] = call[name]
        if "max_sequence_length" in call:
            settings["cross_text"] = call["max_sequence_length"]
        return ModelShape(name=model, transformers=transformers, **settings)
    except (KeyError, TypeError, IndexError) as error:
        raise ModelLoadError(f"model {model!r}: its configurations lack {error}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}; accepted is a Diffusers pipeline folder") from error
    if not isinstance(data, dict):
        raise ModelLoadError(f"{path} holds no settings")
    return data


def _fetch(model: str, name: str) -> Path:
    from diffusers.utils.hub_utils import hf_hub_download

    try:
        return Path(hf_hub_download(model, name))
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelLoadError(f"model {model!r}: {name} cannot be fetched: {lines[0]}") from error


def _common(known: str, **settings: Any) -> dict[str, Any]:
    """Settings of a model that serves as the example of its family, under those that were read."""
    shape = KNOWN_SHAPES[known]
    names = (
        "family height width num_frames num_inference_steps spatial temporal patch patch_t text_length text_first "
        "cross_text gated snaps accepts note"
    )
    return {**{name: getattr(shape, name) for name in names.split()}, **settings}


def _wan(config: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    patch_t, patch, _ = config["patch_size"]
    return _common(
        "wan-1.3b",
        layers=config["num_layers"] + len(config.get("vace_layers") or ()),
        ffn_dim=config["ffn_dim"],
        spatial=vae.get("scale_factor_spatial") or 8,
        temporal=vae.get("scale_factor_temporal") or 4,
        patch=patch,
        patch_t=patch_t,
    )


def _cogvideox(config: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    return _common(
        "cogvideox-5b",
        layers=config["num_layers"],
        spatial=2 ** (len(vae["block_out_channels"]) - 1),
        temporal=vae.get("temporal_compression_ratio") or 4,
        patch=config["patch_size"],
        patch_t=config.get("patch_size_t") or 1,
        text_length=config["max_text_seq_length"],
    )


def _hunyuan(known: str, config: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return _common(
        known,
        layers=config["num_layers"] + (config.get("num_single_layers") or 0),
        ffn_dim=int(width * config["mlp_ratio"]),
        spatial=vae["spatial_compression_ratio"],
        temporal=vae["temporal_compression_ratio"],
        patch=config["patch_size"],
        patch_t=config["patch_size_t"],
    )


def _ltx(config: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    halvings = sum(vae["spatio_temporal_scaling"])
    return _common(
        "ltx-2b",
        layers=config["num_layers"],
        spatial=vae.get("spatial_compression_ratio") or vae["patch_size"] * 2**halvings,
        temporal=vae.get("temporal_compression_ratio") or vae["patch_size_t"] * 2**halvings,
        patch=config["patch_size"],
        patch_t=config["patch_size_t"],
    )


def _mochi(config: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return _common(
        "mochi",
        layers=config["num_layers"],
        ffn_dim=4 * width * 2 // 3,
        patch=config["patch_size"],
        text_width=config["pooled_projection_dim"],
    )


READERS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "WanTransformer3DModel": _wan,
    "PlacedWanTransformer3DModel": _wan,  # the bundled model
    "WanVACETransformer3DModel": _wan,
    "WanAnimateTransformer3DModel": _wan,
    "ChronoEditTransformer3DModel": _wan,
    "SkyReelsV2Transformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "HunyuanVideoTransformer3DModel": lambda config, vae: _hunyuan("hunyuan-video", config, vae),
    "HunyuanVideo15Transformer3DModel": lambda config, vae: _hunyuan("hunyuan-video-1.5", config, vae),
    "LTXVideoTransformer3DModel": _ltx,
    "MochiTransformer3DModel": _mochi,
}
