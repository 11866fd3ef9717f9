"""What the app needs of pipelines. The command line brings the real one, so that the app knows no Diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.float32]
OnStep = Callable[[int, int], None]


class Engine(Protocol):
    """Pipelines by name. What is not said to load anything must be cheap: pages ask it while they are built."""

    def call_defaults(self, model: str) -> dict[str, Any]:
        """Arguments of the pipeline call that suit a model, and its `fps`; loads nothing."""

    def method_defaults(self, model: str, method: str) -> dict[str, Any]:
        """Settings of a sparse method that suit a model; loads nothing."""

    def plans(self, model: str) -> dict[str, Path]:
        """Plans that ship with a model, by name; loads nothing."""

    def shape(self, model: str, *, fetch: bool = True) -> Any:
        """The model's `ModelShape` (`spatial`, `temporal`, `patch`, `grid()`, ...), or `None` if its family is unknown.

        Args:
            model: Its name.
            fetch: Whether configurations may be fetched from the Hub.
        """

    def load(self, model: str) -> Any:
        """The pipeline; slow."""

    def warm_up(self, pipe: Any, call: dict[str, Any], image: Any = None) -> None:
        """One step, so that a timed run does not pay for allocation and lazy imports."""

    def generate(self, pipe: Any, call: dict[str, Any], *, image: Any = None, on_step: OnStep | None = None) -> Frames:
        """Run the pipeline once.

        Args:
            pipe: The pipeline, enabled or not.
            call: Settings of the call with `prompt` and `seed`.
            image: First frame, for image-to-video.
            on_step: Called with the steps done and their number; what it raises ends the run.

        Returns:
            Frames `[F, H, W, 3]` in [0, 1].
        """

    def write_video(self, frames: Frames, path: Path, fps: int) -> None:
        """Encode frames as MP4."""


class PipelineHolder:
    """Keeps the pipeline that was used last; the worker's thread alone may ask it.

    Args:
        engine: Where pipelines come from.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._model: str | None = None
        self._pipe: Any = None

    @property
    def model(self) -> str | None:
        """The model that is loaded."""
        return self._model

    def get(self, model: str) -> Any:
        """The pipeline of a model; the one before is let go first, since two may not fit into memory."""
        if self._model != model:
            self._model, self._pipe = None, None
            self._pipe = self._engine.load(model)
            self._model = model
        return self._pipe
