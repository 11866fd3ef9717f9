"""When attention stays dense: the first denoising steps, and chosen layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdit.errors import ConfigError
from fastdit.validation import check_count, check_fraction


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Dense parts of a run.

    Args:
        dense_steps: Leading steps that stay dense: a float is a fraction of the run (rounded up), an int a count.
        dense_layers: Self-attention layers that stay dense in every step, counted from 0 in each transformer;
            negative numbers count from the end.
    """

    dense_steps: float | int = 0.2
    dense_layers: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if isinstance(self.dense_steps, float):
            check_fraction("dense_steps", self.dense_steps)
        else:
            check_count("dense_steps", self.dense_steps)
        layers = self.dense_layers
        if not isinstance(layers, tuple) or any(isinstance(n, bool) or not isinstance(n, int) for n in layers):
            raise ConfigError(f"dense_layers={layers!r}: accepted is a tuple of layer numbers, e.g. (0, 1)")

    def resolve_dense_steps(self, num_inference_steps: int | None) -> int:
        """Number of leading dense steps of a run.

        Args:
            num_inference_steps: Steps of the run, `None` if nobody has said.

        Raises:
            ConfigError: `dense_steps` is a fraction and the number of steps is unknown.
        """
        if isinstance(self.dense_steps, int):
            return self.dense_steps
        if self.dense_steps == 0.0:
            return 0
        if num_inference_steps is None:
            raise ConfigError(
                f"dense_steps={self.dense_steps!r} is a fraction, but the number of steps of this run is unknown "
                "(no pipeline scheduler): give dense_steps as an int"
            )
        # The small slack keeps 0.2 * 15 = 3.0000000000000004 at 3.
        return math.ceil(self.dense_steps * num_inference_steps - 1e-9)

    def is_dense_step(self, step: int, num_inference_steps: int | None) -> bool:
        """Whether all layers are dense at `step`."""
        return step < self.resolve_dense_steps(num_inference_steps)

    def is_dense_layer(self, layer: int, num_layers: int) -> bool:
        """Whether `layer` of `num_layers` is dense in every step."""
        return layer in self.dense_layers or layer - num_layers in self.dense_layers
