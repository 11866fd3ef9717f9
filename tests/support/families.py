"""The model families that the compatibility tests run over: tiny random pipelines, how to call them, which sizes fit.

A new family is one entry in `FAMILIES`: its module has `build(**variant)` and `run(pipe, steps=4, seed=0, **kwargs)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

import fastdit
from fastdit.adapters import find_adapter

Sizes = tuple[Mapping[str, Any], ...]

LTX_SIZES: Sizes = ({"size": (32, 32), "num_frames": 9}, {"size": (32, 64), "num_frames": 1})
MOCHI_SIZES: Sizes = ({"size": (32, 48), "num_frames": 19}, {"size": (48, 32), "num_frames": 7})
HUNYUAN_SIZES: Sizes = (
    {"height": 32, "width": 48, "num_frames": 9},
    {"height": 48, "width": 32, "num_frames": 17},
    {"height": 48, "width": 80, "num_frames": 1},
)
HUNYUAN15_SIZES: Sizes = (
    {"height": 16, "width": 24, "num_frames": 5},
    {"height": 24, "width": 16, "num_frames": 9},
    {"height": 20, "width": 28, "num_frames": 1},
)


@dataclass(frozen=True)
class Family:
    """One column of the compatibility document.

    Args:
        name: In the names of tests.
        title: In the document.
        module: Under tests/support, with the builder.
        build_name: Name of the builder there.
        run_name: Name of the function there that returns the latents of a short run.
        variant: Arguments of the builder.
        sizes: `size` (height and width) and `num_frames` of small videos, the first of which is usual. Tokens of the
            others do not divide by tiles, and one of them has a single latent frame.
        arguments: Of every run.
        guidance_off: Arguments that turn guidance off.
        unguided: Arguments of the builder that turn guidance off, where the call has none.
        half_guided: Arguments of the builder that stop guidance part-way; without them a callback tries to.
        tensor_format: Order of batch, channels, frames, height and width in the latents.
        fewest_steps: With which the stock pipeline works.
    """

    name: str
    title: str
    module: str
    build_name: str = "build"
    run_name: str = "run"
    variant: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sizes = (
        {"size": (32, 48), "num_frames": 9},
        {"size": (48, 32), "num_frames": 17},
        {"size": (48, 80), "num_frames": 1},
    )
    arguments: Mapping[str, Any] = field(default_factory=dict)
    guidance_off: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    unguided: Mapping[str, Any] = field(default_factory=dict)
    half_guided: Mapping[str, Any] = field(default_factory=dict)
    tensor_format: str = "BCFHW"
    fewest_steps: int = 1

    def build(self, **variant: Any) -> Any:
        """A fresh pipeline; all of the same variant are equal."""
        return getattr(import_module(self.module), self.build_name)(**{**self.variant, **variant})

    def run(self, pipe: Any, steps: int = 2, **kwargs: Any) -> torch.Tensor:
        """Latents of a short run at the usual size."""
        runner: Callable[..., torch.Tensor] = getattr(import_module(self.module), self.run_name)
        with torch.no_grad():
            return runner(pipe, steps=steps, **{**self.sizes[0], **self.arguments, **kwargs})


FAMILIES = (
    Family("wan", "Wan 2.1", "tests_support", "build_tiny_wan", "run_wan"),
    Family("ltx", "LTX-Video", "tiny_ltx", sizes=LTX_SIZES, tensor_format="BCFHW"),
    Family("cogvideox", "CogVideoX 5b", "tiny_cogvideox", tensor_format="BFCHW"),
    Family("mochi", "Mochi", "tiny_mochi", sizes=MOCHI_SIZES, fewest_steps=2),
    Family("wan_i2v", "Wan 2.1 image-to-video", "tiny_wan_variants", variant={"kind": "i2v"}),
    Family("wan_two", "Wan 2.2", "tests_support", "build_tiny_wan", "run_wan", variant={"two_transformers": True}),
    Family(
        "hunyuan_video",
        "HunyuanVideo",
        "tiny_hunyuan_video",
        sizes=HUNYUAN_SIZES,
        arguments={"negative_prompt": "bad", "true_cfg_scale": 3.0},
        guidance_off={"true_cfg_scale": 1.0},
    ),
    Family(
        "hunyuan_video15",
        "HunyuanVideo-1.5",
        "tiny_hunyuan_video15",
        sizes=HUNYUAN15_SIZES,
        guidance_off={},
        unguided={"guidance_scale": 1.0},
        half_guided={"guidance_stop": 0.5},
    ),
)

NO_DENSE = fastdit.Schedule(dense_steps=0, dense_layers=())
ALL_DENSE = fastdit.AdaptiveConfig(min_tokens=0, schedule=fastdit.Schedule(dense_steps=1.0, dense_layers=()))


def small_tiles(**settings: Any) -> fastdit.AdaptiveConfig:
    """A sparse method with tiles that suit tiny videos, without dense steps."""
    given = {"schedule": NO_DENSE, "density": 0.4, "min_tokens": 0, **settings}
    return fastdit.AdaptiveConfig(q_tile=8, kv_tile=4, **given)


def transformers(pipe: Any) -> list[Any]:
    """The one or two transformers of a pipeline."""
    found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    return [transformer for transformer in found if transformer is not None]


def attention_layers(pipe: Any) -> list[torch.nn.Module]:
    """The modules whose processors fastdit replaces, of all transformers."""
    return [module for one in transformers(pipe) for _, module in find_adapter(one).sites(one)]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Equal but for rounding: to `tolerance` of the largest value."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
