"""Pipelines as the app needs them; Diffusers is imported when the first one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdit.errors import UnsupportedModelError
from fastdit_pipelines.bundled_models import method_defaults, model_defaults, model_folder, model_plans
from fastdit_pipelines.real_shapes import ModelShape
from fastdit_pipelines.shape_reading import find_shape


class PipelineEngine:
    """Loads and runs pipelines; see `fastdit_ui.engine.Engine`."""

    def call_defaults(self, model: str) -> dict[str, Any]:
        """Arguments of the call that suit a model, and its `fps`."""
        return {"fps": 16, **model_defaults(model)}

    def method_defaults(self, model: str, method: str) -> dict[str, Any]:
        """Settings of a sparse method that suit a model."""
        return method_defaults(model, method)

    def plans(self, model: str) -> dict[str, Path]:
        """Plans that ship with a model, by name."""
        return model_plans(model)

    def shape(self, model: str, *, fetch: bool = True) -> ModelShape | None:
        """What decides the lengths of a model, `None` if its family is not known.

        Args:
            model: A bundled name, a Diffusers folder, or a Hub id.
            fetch: Whether a few kilobytes may be fetched from the Hub.
        """
        if not fetch and not model_folder(model).exists():
            return None
        try:
            return find_shape(model)
        except UnsupportedModelError:
            return None

    def load(self, model: str) -> Any:
        """The pipeline, without progress bars."""
        from fastdit_pipelines.loading import load_pipeline

        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def warm_up(self, pipe: Any, call: dict[str, Any], image: Any = None) -> None:
        """One step, so that a timed run does not pay for allocation and lazy imports."""
        from fastdit_pipelines.generation import GenerationSettings, warm_up

        warm_up(pipe, GenerationSettings(**call), image=image)

    def generate(
        self,
        pipe: Any,
        call: dict[str, Any],
        *,
        image: Any = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Run the pipeline once; frames `[F, H, W, 3]` in [0, 1].

        Args:
            pipe: The pipeline.
            call: Fields of `GenerationSettings`.
            image: First frame, for image-to-video.
            on_step: Called with the steps done and their number; what it raises ends the run.
        """
        from fastdit_pipelines.generation import GenerationSettings, generate

        return generate(pipe, GenerationSettings(**call), None, image=image, on_step=on_step)

    def write_video(self, frames: Any, path: Path, fps: int) -> None:
        """Encode frames as MP4."""
        from fastdit_pipelines.generation import write_video

        write_video(frames, path, fps)
