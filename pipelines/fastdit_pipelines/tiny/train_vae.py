"""Trains the video autoencoder of the bundled model on rendered clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from tqdm.auto import tqdm

from fastdit_pipelines.tiny.run_directory import RunDirectory
from fastdit_pipelines.tiny.world import DIRECTIONS, SPEEDS, SceneSampler, render


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one optimiser step sees: `batch_size` clips of `num_frames` (`4 k + 1`) frames, `size` pixels square."""

    batch_size: int
    num_frames: int
    size: int


@dataclass(frozen=True, kw_only=True)
class VaeTraining:
    """Settings of one stage of the autoencoder's training.

    Args:
        num_steps: Optimiser steps.
        windows: Window sizes, taken in turn.
        learning_rate: Peak rate of a one-cycle schedule.
        kl_weight: Weight of the KL term, which only keeps the latents from growing.
        seed: Seed of scenes and windows.
        save_every: Steps between checkpoints.
    """

    num_steps: int
    windows: tuple[Window, ...]
    learning_rate: float
    kl_weight: float = 1e-5
    seed: int = 1
    save_every: int = 100


# Short clips first, for many steps. The causal convolutions look back over a dozen latent frames, so the second stage
# must show them long clips and wide frames: without it the colours drift after the first few frames.
SHORT_CLIPS = VaeTraining(
    num_steps=3400, windows=(Window(batch_size=8, num_frames=5, size=32),), learning_rate=3e-3, seed=1
)
LONG_CLIPS = VaeTraining(
    num_steps=600,
    windows=(Window(batch_size=2, num_frames=33, size=32), Window(batch_size=1, num_frames=17, size=64)),
    learning_rate=1.5e-3,
    seed=2,
)


def sample_clips(sampler: SceneSampler, window: Window, generator: torch.Generator) -> torch.Tensor:
    """Render scenes at two scales and cut windows around an object's path: `[B, 3, F, S, S]` in [-1, 1].

    Most of a frame is plain background, so windows near an object teach more per pixel.
    """
    clips = []
    for _ in range(window.batch_size):
        scene = sampler.sample()
        side = (64, 128)[int(torch.randint(2, (), generator=generator))]
        length = max(side // 4 + 1, window.num_frames)
        frames = render(scene, length, side, side)
        first = int(torch.randint(length - window.num_frames + 1, (), generator=generator))
        middle = first + int(torch.randint(window.num_frames, (), generator=generator))
        item = scene.objects[int(torch.randint(len(scene.objects), (), generator=generator))]
        jitter = (torch.rand(2, generator=generator) - 0.5) * window.size
        corner = []
        for axis in (0, 1):
            travelled = DIRECTIONS[item.direction][axis] * SPEEDS[item.speed] * middle / (length - 1)
            center = (item.start[axis] + travelled) * side + float(jitter[axis])
            corner.append(min(max(int(center) - window.size // 2, 0), side - window.size))
        left, top = corner
        cut = frames[first : first + window.num_frames, :, top : top + window.size, left : left + window.size]
        clips.append(cut.transpose(0, 1))
    return torch.stack(clips) * 2 - 1


def reconstruction_loss(
    vae: AutoencoderKLWan, clips: torch.Tensor, noise: torch.Tensor, kl_weight: float
) -> torch.Tensor:
    """L1 + 2 x MSE of the clip, L1 of its spatial differences (sharp edges), and a small KL term."""
    posterior = vae.encode(clips).latent_dist
    restored = vae.decode(posterior.mean + posterior.std * noise).sample
    loss = F.l1_loss(restored, clips) + 2 * F.mse_loss(restored, clips)
    for dim in (-1, -2):
        loss = loss + F.l1_loss(restored.diff(dim=dim), clips.diff(dim=dim))
    total: torch.Tensor = loss + kl_weight * posterior.kl().mean() / clips[0].numel() * 1e3
    return total


def train_vae(vae: AutoencoderKLWan, config: VaeTraining, directory: Path, name: str) -> AutoencoderKLWan:
    """Train one stage in place; continues from the checkpoint `name` in `directory` if there is one."""
    run = RunDirectory(directory, name)
    run.write_config(asdict(config))
    vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.num_steps + 1, pct_start=0.1, cycle_momentum=False
    )
    start = 0
    if (state := run.load()) is not None:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
        run.truncate_log(start)
    progress = tqdm(range(start, config.num_steps), initial=start, total=config.num_steps, desc=name)
    for step in progress:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        window = config.windows[step % len(config.windows)]
        clips = sample_clips(SceneSampler(config.seed * 7_000_003 + step), window, generator)
        shape = (len(clips), vae.config.z_dim, (window.num_frames - 1) // 2 + 1, window.size // 4, window.size // 4)
        loss = reconstruction_loss(vae, clips, torch.randn(shape, generator=generator), config.kl_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 10 == 0:
            run.log(step + 1, loss=loss.item())
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.num_steps:
            run.save(
                {
                    "model": vae.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step + 1,
                }
            )
    return vae.eval()


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLWan, num_clips: int = 64, seed: int = 2) -> None:
    """Write the mean and standard deviation of each latent channel into the configuration, as Wan has them."""
    sampler = SceneSampler(seed)
    latents = []
    for _ in range(num_clips):
        clip = render(sampler.sample(), 9, 64, 64).transpose(0, 1)[None] * 2 - 1
        latents.append(vae.encode(clip).latent_dist.mean)
    stacked = torch.cat(latents).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=stacked.mean(1).tolist(), latents_std=stacked.std(1).tolist())
