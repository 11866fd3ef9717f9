"""Trains the transformer and the text encoder of the bundled model by flow matching on encoded clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from fastdit_pipelines.tiny.run_directory import RunDirectory
from fastdit_pipelines.tiny.world import SceneSampler, render


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the training at one clip size.

    Args:
        num_frames: Frames of a clip, `4 k + 1`.
        size: Pixels of the square frame.
        batch_size: Clips per optimiser step.
        num_steps: Optimiser steps.
        pool_size: Clips rendered and encoded beforehand; steps draw from this pool.
        learning_rate: Rate at the start of the stage.
        final_learning_rate: Rate at its end (linear in between).
    """

    num_frames: int
    size: int
    batch_size: int
    num_steps: int
    pool_size: int
    learning_rate: float
    final_learning_rate: float


DEFAULT_STAGES = (
    Stage(
        num_frames=9,
        size=64,
        batch_size=16,
        num_steps=1400,
        pool_size=5000,
        learning_rate=1.5e-3,
        final_learning_rate=1e-3,
    ),
    Stage(
        num_frames=9,
        size=64,
        batch_size=8,
        num_steps=2600,
        pool_size=4000,
        learning_rate=1.2e-3,
        final_learning_rate=6e-4,
    ),
    Stage(
        num_frames=17,
        size=64,
        batch_size=4,
        num_steps=320,
        pool_size=900,
        learning_rate=6e-4,
        final_learning_rate=5e-4,
    ),
    Stage(
        num_frames=33,
        size=96,
        batch_size=1,
        num_steps=380,
        pool_size=240,
        learning_rate=5e-4,
        final_learning_rate=4e-4,
    ),
    Stage(
        num_frames=33,
        size=128,
        batch_size=1,
        num_steps=350,
        pool_size=220,
        learning_rate=4e-4,
        final_learning_rate=2e-5,
    ),
)


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """Settings of the transformer's training.

    Args:
        stages: Clip sizes in order, small grids first.
        caption_dropout: Share of clips trained with an empty caption, for classifier-free guidance.
        text_lengths: Padded caption lengths drawn per step; the stock pipeline pads to 512.
        flow_shift: Shift of the noise levels; logit-normal before the shift.
        ema_decay: Decay of the averaged weights that are shipped.
        seed: Seed of scenes, noise and noise levels.
        save_every: Steps between checkpoints.
    """

    stages: tuple[Stage, ...] = field(default=DEFAULT_STAGES)
    caption_dropout: float = 0.1
    text_lengths: tuple[int, ...] = (24, 24, 24, 48, 24, 24, 24, 512)
    flow_shift: float = 3.0
    ema_decay: float = 0.998
    seed: int = 3
    save_every: int = 50


@dataclass(frozen=True)
class ClipPool:
    """Encoded clips `latents` `[N, C, T, H, W]` (normalised) and their captions."""

    latents: torch.Tensor
    captions: list[str]


@torch.no_grad()
def encode_pool(pipe: WanPipeline, stage: Stage, seed: int) -> ClipPool:
    """Render `stage.pool_size` scenes and encode them with the autoencoder."""
    sampler = SceneSampler(seed)
    mean = torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents, captions, group = [], [], 8
    for _ in tqdm(range(0, stage.pool_size, group), desc=f"encode {stage.num_frames}x{stage.size}"):
        scenes = [sampler.sample() for _ in range(group)]
        frames = [render(scene, stage.num_frames, stage.size, stage.size).transpose(0, 1) for scene in scenes]
        latents.append((pipe.vae.encode(torch.stack(frames) * 2 - 1).latent_dist.mean - mean) / std)
        captions += [scene.caption for scene in scenes]
    return ClipPool(torch.cat(latents), captions)


def flow_matching_loss(
    pipe: WanPipeline, pool: ClipPool, stage: Stage, config: TransformerTraining, step: int
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - clip` at random noise levels.

    The levels are `sigma = s u / (1 + (s - 1) u)` with `u = sigmoid(normal)` and `s = flow_shift`.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    picked = torch.randint(len(pool.captions), (stage.batch_size,), generator=generator)
    dropped = torch.rand(stage.batch_size, generator=generator) < config.caption_dropout
    captions = [
        "" if drop else pool.captions[index] for index, drop in zip(picked.tolist(), dropped.tolist(), strict=True)
    ]
    length = config.text_lengths[int(torch.randint(len(config.text_lengths), (), generator=generator))]
    clips = pool.latents[picked]
    noise = torch.randn(clips.shape, generator=generator)
    uniform = torch.sigmoid(torch.randn(stage.batch_size, generator=generator))
    sigma = config.flow_shift * uniform / (1 + (config.flow_shift - 1) * uniform)
    weight = sigma.view(-1, 1, 1, 1, 1)
    # The stock pipeline's own encoding, so that training and use pad captions alike.
    text = pipe._get_t5_prompt_embeds(captions, max_sequence_length=length)
    velocity = pipe.transformer(
        hidden_states=(1 - weight) * clips + weight * noise,
        timestep=sigma * 1000,
        encoder_hidden_states=text,
        return_dict=False,
    )[0]
    loss: torch.Tensor = (velocity - (noise - clips)).square().mean()
    return loss


def _locate(stages: tuple[Stage, ...], step: int) -> tuple[int, Stage, float]:
    """The stage that `step` belongs to and the learning rate there."""
    for index, stage in enumerate(stages):
        if step < stage.num_steps:
            share = step / stage.num_steps
            return index, stage, stage.learning_rate + share * (stage.final_learning_rate - stage.learning_rate)
        step -= stage.num_steps
    raise AssertionError("step past the last stage")


def train_transformer(pipe: WanPipeline, config: TransformerTraining, directory: Path) -> WanPipeline:
    """Train in place; continues from the checkpoint in `directory`. Ends with the averaged weights loaded."""
    run = RunDirectory(directory, "transformer")
    run.write_config(asdict(config))
    model = nn.ModuleDict({"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    start = 0
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start = state["step"]
        run.truncate_log(start)
    total = sum(stage.num_steps for stage in config.stages)
    progress = tqdm(range(start, total), initial=start, total=total, desc="transformer")
    pool: ClipPool | None = None
    pool_stage, smooth = -1, None
    for step in progress:
        index, stage, rate = _locate(config.stages, step)
        if pool is None or index != pool_stage:
            pool, pool_stage = encode_pool(pipe, stage, config.seed * 100 + index), index
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100)
        loss = flow_matching_loss(pipe, pool, stage, config, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 10 == 0:
            run.log(step + 1, loss=loss.item(), smooth=smooth, stage=index)
            progress.set_postfix(loss=f"{smooth:.4f}", stage=index)
        if (step + 1) % config.save_every == 0 or step + 1 == total:
            run.save(_checkpoint(model, optimizer, ema, step + 1))
    ema.copy_to(parameters)
    model.eval()
    return pipe


def _checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel, step: int) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict(), "step": step}
