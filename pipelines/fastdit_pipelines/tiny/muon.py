"""Muon with float32 iterations: gradient descent along the orthogonalised momentum of weight matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

# Quintic iteration of K. Jordan, "Muon" (2024): pushes every singular value towards 1 in a few steps.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """About `U V^T` of the singular value decomposition `U S V^T` of each matrix; singular values end near .7 to 1.2.

    Args:
        matrices: `[N, rows, columns]`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """`W <- (1 - lr wd) W - lr sqrt(max(1, rows / columns)) orthogonalize(G + nesterov momentum)`.

    `torch.optim.Muon` iterates in bfloat16, matrix by matrix. Processors without bfloat16 units need longer for that
    than for the gradient, so this one iterates in float32 over all matrices of a shape at once.

    Args:
        parameters: Two-dimensional weights.
        lr: Learning rate.
        momentum: Weight of the past in the running mean of the gradients.
        weight_decay: Decoupled decay.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss to return
        """Update every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                self._update(weights, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, weights: list[torch.Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        directions = []
        for weight in weights:
            assert weight.grad is not None
            mean = self.state[weight].setdefault("mean_gradient", torch.zeros_like(weight))
            mean.lerp_(weight.grad, 1 - momentum)
            directions.append(weight.grad.lerp(mean, momentum))
        rows, columns = weights[0].shape
        factor = lr * max(1.0, rows / columns) ** 0.5
        for weight, direction in zip(weights, orthogonalize(torch.stack(directions)), strict=True):
            weight.mul_(1 - lr * weight_decay).add_(direction, alpha=-factor)
