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

from fastdit_pipelines.tiny.caption_padding import padded_captions
from fastdit_pipelines.tiny.clip_pool import ClipPool, ClipSize, encode_pool
from fastdit_pipelines.tiny.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the training; every step draws one of its clip sizes.

    Args:
        clip_sizes: Sizes with batch sizes, pools and weights.
        num_steps: Optimiser steps.
        learning_rate: Rate at the start of the stage.
        final_learning_rate: Rate at its end (linear in between).
    """

    clip_sizes: tuple[ClipSize, ...]
    num_steps: int
    learning_rate: float
    final_learning_rate: float


# Small grids teach what the captions mean at a fiftieth of the cost; a few clips of the default size keep it working.
DEFAULT_STAGES = (
    Stage(
        clip_sizes=(
            ClipSize(num_frames=9, size=64, batch_size=8, pool_size=4000, weight=0.75),
            ClipSize(num_frames=17, size=64, batch_size=4, pool_size=800, weight=0.2),
            ClipSize(num_frames=33, size=128, batch_size=1, pool_size=60, weight=0.05),
        ),
        num_steps=30_000,
        learning_rate=1.5e-3,
        final_learning_rate=5e-4,
    ),
    Stage(
        clip_sizes=(
            ClipSize(num_frames=17, size=64, batch_size=4, pool_size=2000, weight=0.6),
            ClipSize(num_frames=33, size=128, batch_size=1, pool_size=400, weight=0.35),
            ClipSize(num_frames=33, size=176, batch_size=1, pool_size=60, weight=0.05),
        ),
        num_steps=3000,
        learning_rate=5e-4,
        final_learning_rate=2e-5,
    ),
)


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """Settings of the transformer's training.

    Args:
        stages: In order, small clips first.
        caption_dropout: Share of clips trained with an empty caption, for classifier-free guidance.
        text_length: Padded caption length; scores stand for the stock pipeline's 512 (`caption_padding`).
        flow_shift: Shift of the noise levels; logit-normal before the shift.
        ema_decay: Decay of the averaged weights that are shipped.
        seed: Seed of scenes, noise and noise levels.
        save_every: Steps between checkpoints.
    """

    stages: tuple[Stage, ...] = field(default=DEFAULT_STAGES)
    caption_dropout: float = 0.1
    text_length: int = 28
    flow_shift: float = 3.0
    ema_decay: float = 0.998
    seed: int = 3
    save_every: int = 100


def flow_matching_loss(
    pipe: WanPipeline, pool: ClipPool, batch_size: int, config: TransformerTraining, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - clip` at random noise levels.

    The levels are `sigma = s u / (1 + (s - 1) u)` with `u = sigmoid(normal)` and `s = flow_shift`.
    """
    device = pool.latents.device
    picked = torch.randint(len(pool.captions), (batch_size,), generator=generator)
    dropped = torch.rand(batch_size, generator=generator) < config.caption_dropout
    captions = [
        "" if drop else pool.captions[index] for index, drop in zip(picked.tolist(), dropped.tolist(), strict=True)
    ]
    clips = pool.latents[picked.to(device)]
    noise = torch.randn(clips.shape, generator=generator).to(device)
    uniform = torch.sigmoid(torch.randn(batch_size, generator=generator)).to(device)
    sigma = config.flow_shift * uniform / (1 + (config.flow_shift - 1) * uniform)
    weight = sigma.view(-1, 1, 1, 1, 1)
    # The stock pipeline's own encoding, so that training and use treat captions alike.
    text = pipe._get_t5_prompt_embeds(captions, max_sequence_length=config.text_length, device=device)
    with (
        padded_captions(pipe.transformer, config.text_length),
        torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
    ):
        velocity = pipe.transformer(
            hidden_states=(1 - weight) * clips + weight * noise,
            timestep=sigma * 1000,
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
    loss: torch.Tensor = (velocity.float() - (noise - clips)).square().mean()
    return loss


class Trainee:
    """The weights under training with their optimiser and running average.

    Args:
        pipe: Its transformer and text encoder are trained in place.
        ema_decay: Decay of the running average.
    """

    def __init__(self, pipe: WanPipeline, ema_decay: float) -> None:
        self.model = nn.ModuleDict({"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}).train()
        self.parameters = list(self.model.parameters())
        # Not Muon: its bfloat16 iterations take longer than the gradient on a CPU without bfloat16 units.
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
        self.ema = EMAModel(self.parameters, decay=ema_decay, use_ema_warmup=True, power=0.75)

    def update(self, loss: torch.Tensor, learning_rate: float) -> None:
        """One optimiser step along the gradient of `loss`."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)

    def state(self, step: int) -> dict[str, Any]:
        """Everything a later start needs to continue after `step` steps."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": step,
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Continue from `state`; returns the steps done."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        step: int = state["step"]
        return step


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
    trainee = Trainee(pipe, config.ema_decay)
    start = 0
    if (state := run.load()) is not None:
        start = trainee.restore(state)
        run.truncate_log(start)
    total = sum(stage.num_steps for stage in config.stages)
    pools: dict[tuple[int, int], ClipPool] = {}
    smooth: dict[str, float] = {}
    progress = tqdm(range(start, total), initial=start, total=total, desc="transformer")
    for step in progress:
        index, stage, rate = _locate(config.stages, step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        weights = torch.tensor([item.weight for item in stage.clip_sizes])
        choice = int(torch.multinomial(weights, 1, generator=generator))
        if (index, choice) not in pools:
            pools = {key: pool for key, pool in pools.items() if key[0] == index}
            pools[index, choice] = encode_pool(pipe, stage.clip_sizes[choice], config.seed * 100 + 10 * index + choice)
        item = stage.clip_sizes[choice]
        loss = flow_matching_loss(pipe, pools[index, choice], item.batch_size, config, generator)
        trainee.update(loss, rate * min(1.0, (step + 1) / 100))
        # One running mean per clip size: losses of different sizes do not compare.
        key = f"{item.num_frames}x{item.size}"
        smooth[key] = 0.98 * smooth.get(key, loss.item()) + 0.02 * loss.item()
        if (step + 1) % 10 == 0:
            run.log(step + 1, loss=loss.item(), stage=index, **smooth)
            progress.set_postfix({name: f"{mean:.4f}" for name, mean in smooth.items()})
        if (step + 1) % config.save_every == 0 or step + 1 == total:
            run.save(trainee.state(step + 1))
    trainee.ema.copy_to(trainee.parameters)
    trainee.model.eval()
    return pipe
