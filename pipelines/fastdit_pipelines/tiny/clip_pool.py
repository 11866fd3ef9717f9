"""Clips of the procedural world, rendered and encoded before a training stage draws from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import WanPipeline
from tqdm.auto import tqdm

from fastdit_pipelines.tiny.world import SceneSampler, render


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Clips of one size and how a stage uses them.

    Args:
        num_frames: Frames of a clip, `2 k + 1`.
        size: Pixels of the square frame.
        batch_size: Clips per optimiser step.
        pool_size: Clips rendered and encoded beforehand.
        weight: How often a step takes this size, relative to the other sizes of the stage.
    """

    num_frames: int
    size: int
    batch_size: int
    pool_size: int
    weight: float = 1.0


@dataclass(frozen=True)
class ClipPool:
    """Encoded clips `latents` `[N, C, T, H, W]` (normalised) and their captions."""

    latents: torch.Tensor
    captions: list[str]


@torch.no_grad()
def encode_pool(pipe: WanPipeline, clip_size: ClipSize, seed: int) -> ClipPool:
    """Render `clip_size.pool_size` scenes drawn with `seed` and encode them with the autoencoder, where it is."""
    sampler = SceneSampler(seed)
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
        latents.append((pipe.vae.encode(clips.to(device) * 2 - 1).latent_dist.mean - mean) / std)
        captions += [scene.caption for scene in scenes]
    return ClipPool(torch.cat(latents), captions)
