"""Clips of the procedural world, rendered and encoded before a training stage draws from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanPipeline
from tqdm.auto import tqdm

from fastdit_pipelines.tiny.run_directory import save_whole
from fastdit_pipelines.tiny.world import SceneSampler, render

# More than a generation asks for: two objects are harder, and the many pairs must not be learnt by heart.
TWO_OBJECT_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Clips of one size and how a stage uses them.

    Args:
        num_frames: Frames of a clip, `2 k + 1`.
        size: Pixels of the square frame.
        batch_size: Clips per optimiser step.
        pool_size: Clips rendered and encoded beforehand.
        weight: How often a step takes this size, relative to the other sizes of the stage.
        latent_frames: A step sees this many latent frames of a clip, at their true places in time; `None` for all.
    """

    num_frames: int
    size: int
    batch_size: int
    pool_size: int
    weight: float = 1.0
    latent_frames: int | None = None

    @property
    def pool_name(self) -> str:
        """Name of the clips, the same for all uses of them."""
        return f"{self.num_frames}x{self.size}"

    @property
    def name(self) -> str:
        """Name of the clips and of how much of each a step sees."""
        return self.pool_name if self.latent_frames is None else f"{self.pool_name}:{self.latent_frames}"


@dataclass(frozen=True)
class ClipPool:
    """Encoded clips `latents` `[N, C, T, H, W]` (normalised, float16, on the CPU) and their captions."""

    latents: torch.Tensor
    captions: list[str]


def load_pool(pipe: WanPipeline, clip_size: ClipSize, seed: int, folder: Path) -> ClipPool:
    """The pool that `folder` keeps of these clips; encoded first if there is none.

    Args:
        pipe: Owner of the autoencoder.
        clip_size: Size and number of the clips.
        seed: Seed of the scenes.
        folder: Where pools are kept, one file each.
    """
    path = folder / f"pool_{clip_size.pool_name}_{clip_size.pool_size}_{seed}.pt"
    if path.exists():
        return ClipPool(*torch.load(path, weights_only=True))
    pool = encode_pool(pipe, clip_size, seed)
    save_whole((pool.latents, pool.captions), path)
    return pool


@torch.no_grad()
def encode_pool(pipe: WanPipeline, clip_size: ClipSize, seed: int) -> ClipPool:
    """Render `clip_size.pool_size` scenes drawn with `seed` and encode them with the autoencoder, where it is."""
    sampler = SceneSampler(seed, two_object_share=TWO_OBJECT_SHARE)
    device = pipe.vae.device
    mean = torch.tensor(pipe.vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(pipe.vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    frames, size = clip_size.num_frames, clip_size.size
    # Groups of about half a million pixels: large enough to be fast, small enough for any memory.
    group = max(1, min(64, 500_000 // (frames * size * size)))
    latents, captions = [], []
    for first in tqdm(range(0, clip_size.pool_size, group), desc=f"encode {frames}x{size}", leave=False):
        scenes = [sampler.sample() for _ in range(min(group, clip_size.pool_size - first))]
        clips = torch.stack([render(scene, frames, size, size).transpose(0, 1) for scene in scenes])
        encoded = pipe.vae.encode(clips.to(device) * 2 - 1).latent_dist.mean
        latents.append(((encoded - mean) / std).to("cpu", torch.float16))
        captions += [scene.caption for scene in scenes]
    return ClipPool(torch.cat(latents), captions)
