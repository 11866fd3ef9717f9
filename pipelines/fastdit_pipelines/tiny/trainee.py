"""The weights under training with their optimisers and running average."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.training_utils import EMAModel
from torch import nn

from fastdit_pipelines.tiny.muon import Muon


class Trainee:
    """Transformer and text encoder of a pipeline, trained in place.

    Weight matrices of the blocks follow Muon, everything else AdamW.

    Args:
        pipe: Owner of the weights.
        ema_decay: Decay of the running average.
    """

    def __init__(self, pipe: WanPipeline, ema_decay: float) -> None:
        self.model = nn.ModuleDict({"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}).train()
        self.parameters = list(self.model.parameters())
        matrices: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for name, weight in self.model.named_parameters():
            # Position buckets are looked up, not multiplied with.
            matrix = weight.ndim == 2 and "block" in name and "relative_attention" not in name
            (matrices if matrix else others).append(weight)
        self.optimizers = (
            Muon(matrices, lr=1.0),
            torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.99), weight_decay=0.01),
        )
        self.ema = EMAModel(self.parameters, decay=ema_decay, use_ema_warmup=True, power=0.75)

    def update(self, loss: torch.Tensor, rates: tuple[float, float]) -> None:
        """One step along the gradient of `loss` with the learning rates of Muon and AdamW."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)

    def state(self, step: int) -> dict[str, Any]:
        """Everything a later start needs to continue after `step` steps."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema.state_dict(),
            "step": step,
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Continue from `state`; returns the steps done."""
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.ema.load_state_dict(state["ema"])
        step: int = state["step"]
        return step

    def finish(self) -> None:
        """Load the averaged weights."""
        self.ema.copy_to(self.parameters)
        self.model.eval()
