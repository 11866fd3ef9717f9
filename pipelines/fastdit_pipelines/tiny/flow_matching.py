"""The loss that trains the transformer and the text encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import WanPipeline

from fastdit_pipelines.tiny.caption_padding import PIPELINE_LENGTH, padded_captions
from fastdit_pipelines.tiny.clip_pool import ClipPool, ClipSize
from fastdit_pipelines.tiny.frame_subset import SubsetDraw, draw_frames, placed_frames

# Latents in a row of the default frame of 96 pixels.
DEFAULT_WIDTH = 24


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a step asks of the model, beside the clip size.

    Args:
        flow_shift: Shift `s` of the noise levels `sigma = s u / (1 + (s - 1) u)`, `u = sigmoid(normal)`, for one or two
            latent frames of 24 x 24; of `n` frames of `w x w`, which show more through the same noise, it is
            `s (n / 2) ** 0.45 w / 24`.
        caption_dropout: Share of clips trained with an empty caption, for classifier-free guidance.
        text_length: Tokens that captions are padded to in training.
        padding_share: Captions count as padded to a length drawn between `text_length` and the stock pipeline's 512,
            evenly in the logarithm of the padding up to this share of it.
        subset: How the latent frames of a subset are drawn.
    """

    flow_shift: float
    caption_dropout: float
    text_length: int
    padding_share: float
    subset: SubsetDraw


def flow_matching_loss(
    pipe: WanPipeline, pool: ClipPool, item: ClipSize, task: Task, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - clip` at random noise levels.

    Args:
        pipe: Its transformer and text encoder are trained.
        pool: Clips to draw from.
        item: How many clips and how many latent frames of each.
        task: Noise levels and captions.
        generator: Random stream of the step.
    """
    device, batch_size = pipe.transformer.device, item.batch_size
    picked = torch.randint(len(pool.captions), (batch_size,), generator=generator)
    dropped = torch.rand(batch_size, generator=generator) < task.caption_dropout
    captions = ["" if drop else pool.captions[i] for i, drop in zip(picked.tolist(), dropped.tolist(), strict=True)]
    num_frames = pool.latents.shape[2]
    frames = torch.arange(num_frames)
    if item.latent_frames is not None and item.latent_frames < num_frames:
        frames = draw_frames(num_frames, item.latent_frames, task.subset, generator)
    clips = pool.latents[picked][:, :, frames].float().to(device)
    noise = torch.randn(clips.shape, generator=generator).to(device)
    uniform = torch.sigmoid(torch.randn(batch_size, generator=generator)).to(device)
    shift = task.flow_shift * (max(len(frames), 2) / 2) ** 0.45 * clips.shape[-1] / DEFAULT_WIDTH
    sigma = shift * uniform / (1 + (shift - 1) * uniform)
    weight = sigma.view(-1, 1, 1, 1, 1)
    most = PIPELINE_LENGTH - task.text_length + 1
    padding = round(most ** (task.padding_share * torch.rand((), generator=generator).item()))
    # The stock pipeline's own encoding, so that training and use treat captions alike.
    text = pipe._get_t5_prompt_embeds(captions, max_sequence_length=task.text_length, device=device)
    with (
        padded_captions(pipe.transformer, task.text_length, task.text_length - 1 + padding),
        placed_frames(pipe.transformer, frames),
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
