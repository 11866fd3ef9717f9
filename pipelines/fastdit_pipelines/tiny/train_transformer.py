"""Trains the transformer and the text encoder of the bundled model by flow matching on encoded clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import WanPipeline
from tqdm.auto import tqdm

from fastdit_pipelines.tiny.clip_pool import ClipPool, ClipSize, load_pool
from fastdit_pipelines.tiny.flow_matching import Task, flow_matching_loss
from fastdit_pipelines.tiny.frame_subset import SubsetDraw
from fastdit_pipelines.tiny.run_directory import RunDirectory
from fastdit_pipelines.tiny.trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the training; every step draws one of its clip sizes.

    Args:
        clip_sizes: Sizes with batch sizes, pools and weights.
        num_steps: Optimiser steps.
        flow_shift: Shift of the noise levels of one or two latent frames (`flow_matching.Task`).
        rate: Factor on the learning rates at the start of the stage.
        final_rate: Factor at its end (linear in between).
        padding_share: Share of the padding of captions that is reached at its end, from that of the stage before.
    """

    clip_sizes: tuple[ClipSize, ...]
    num_steps: int
    flow_shift: float
    rate: float
    final_rate: float
    padding_share: float = 1.0


def _default_size(latent_frames: int | None, batch_size: int, weight: float) -> ClipSize:
    return ClipSize(
        num_frames=57, size=96, batch_size=batch_size, pool_size=4000, weight=weight, latent_frames=latent_frames
    )


def _larger_size(latent_frames: int | None, batch_size: int, weight: float) -> ClipSize:
    return ClipSize(
        num_frames=57, size=144, batch_size=batch_size, pool_size=300, weight=weight, latent_frames=latent_frames
    )


# One or two frames show colours, shapes, directions and which attribute belongs to which object at a tenth of the cost
# of a clip; whole clips come next, and the larger size last.
DEFAULT_STAGES = (
    Stage(
        clip_sizes=(_default_size(1, 32, 0.4), _default_size(2, 16, 0.45), _default_size(4, 8, 0.15)),
        num_steps=12_000,
        flow_shift=5.0,
        rate=1.0,
        final_rate=0.5,
    ),
    Stage(
        clip_sizes=(
            _default_size(1, 32, 0.1),
            _default_size(2, 16, 0.3),
            _default_size(4, 8, 0.25),
            _default_size(8, 4, 0.15),
            _default_size(None, 2, 0.1),
            _larger_size(2, 8, 0.1),
        ),
        num_steps=6000,
        flow_shift=4.0,
        rate=0.5,
        final_rate=0.2,
    ),
    Stage(
        clip_sizes=(
            _default_size(2, 16, 0.1),
            _default_size(4, 8, 0.2),
            _default_size(8, 4, 0.2),
            _default_size(9, 4, 0.1),
            _default_size(None, 2, 0.3),
            _larger_size(2, 8, 0.1),
        ),
        num_steps=4000,
        flow_shift=4.0,
        rate=0.2,
        final_rate=0.02,
    ),
    Stage(
        clip_sizes=(
            _larger_size(1, 16, 0.13),
            _larger_size(2, 8, 0.27),
            _larger_size(4, 4, 0.14),
            _larger_size(8, 4, 0.1),
            _larger_size(None, 2, 0.04),
            _default_size(2, 16, 0.1),
            _default_size(4, 8, 0.05),
            _default_size(8, 4, 0.07),
            _default_size(None, 2, 0.1),
        ),
        num_steps=2000,
        flow_shift=4.0,
        rate=0.25,
        final_rate=0.005,
    ),
)


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """Settings of the transformer's training.

    Args:
        stages: In order, few frames first.
        muon_rate: Learning rate of the weight matrices at rate 1.
        adamw_rate: Learning rate of all other weights at rate 1.
        caption_dropout: Share of clips trained with an empty caption, for classifier-free guidance.
        text_length: Padded caption length; scores stand for up to the stock pipeline's 512 (`caption_padding`).
        subset: How the latent frames of a subset are drawn.
        ema_decay: Decay of the averaged weights that are shipped.
        seed: Seed of scenes, noise and noise levels.
        save_every: Steps between checkpoints.
        compile: Compile the blocks; needs a C++ compiler on a CPU, and halves the time of a step there.
    """

    stages: tuple[Stage, ...] = field(default=DEFAULT_STAGES)
    muon_rate: float = 0.01
    adamw_rate: float = 1e-3
    caption_dropout: float = 0.1
    text_length: int = 24
    subset: SubsetDraw = field(default_factory=SubsetDraw)
    ema_decay: float = 0.998
    seed: int = 3
    save_every: int = 100
    compile: bool = False


@dataclass(frozen=True)
class _Place:
    """Where a step lies: its stage, and the values that change along it."""

    index: int
    stage: Stage
    rate: float
    padding_share: float


def _locate(stages: tuple[Stage, ...], step: int) -> _Place:
    padding = 0.0
    for index, stage in enumerate(stages):
        if step < stage.num_steps:
            share = step / stage.num_steps
            rate = stage.rate + share * (stage.final_rate - stage.rate)
            return _Place(index, stage, rate, padding + share * (stage.padding_share - padding))
        step -= stage.num_steps
        padding = stage.padding_share
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
    if config.compile:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    total = sum(stage.num_steps for stage in config.stages)
    pools: dict[str, ClipPool] = {}
    smooth: dict[str, float] = {}
    progress = tqdm(range(start, total), initial=start, total=total, desc="transformer")
    for step in progress:
        place = _locate(config.stages, step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        item = _draw_size(place.stage, generator)
        if item.pool_name not in pools:
            pools[item.pool_name] = load_pool(pipe, item, config.seed, directory)
        task = Task(
            flow_shift=place.stage.flow_shift,
            caption_dropout=config.caption_dropout,
            text_length=config.text_length,
            padding_share=place.padding_share,
            subset=config.subset,
        )
        loss = flow_matching_loss(pipe, pools[item.pool_name], item, task, generator)
        rate = place.rate * min(1.0, (step + 1) / 100)
        trainee.update(loss, (config.muon_rate * rate, config.adamw_rate * rate))
        # One running mean per clip size: losses of different sizes do not compare.
        smooth[item.name] = 0.98 * smooth.get(item.name, loss.item()) + 0.02 * loss.item()
        if (step + 1) % 10 == 0:
            run.log(step + 1, loss=loss.item(), stage=place.index, **smooth)
            progress.set_postfix({name: f"{mean:.4f}" for name, mean in smooth.items()})
        if (step + 1) % config.save_every == 0 or step + 1 == total:
            run.save(trainee.state(step + 1))
    trainee.finish()
    return pipe


def _draw_size(stage: Stage, generator: torch.Generator) -> ClipSize:
    weights = torch.tensor([item.weight for item in stage.clip_sizes])
    return stage.clip_sizes[int(torch.multinomial(weights, 1, generator=generator))]
