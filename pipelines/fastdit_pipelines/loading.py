"""Loading a pipeline: the bundled model by name, anything else through Diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

# Diffusers takes components from a module of ours only if it is imported already.
import fastdit_pipelines.tiny.placed_transformer  # noqa: F401
from fastdit.errors import ModelLoadError
from fastdit_pipelines.bundled_models import BUNDLED_MODELS


def load_pipeline(model: str, *, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """Load a Diffusers pipeline.

    Args:
        model: A bundled name (`"tiny"`), a folder, or a repository id on the Hugging Face Hub.
        dtype: Weights' dtype; default float32 on a CPU, bfloat16 elsewhere.
        device: Where to put it; default an accelerator if there is one, else the CPU.

    Raises:
        ModelLoadError: It cannot be loaded; the message names the model and the cause in one line.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
    source = str(BUNDLED_MODELS[model].folder) if model in BUNDLED_MODELS else model
    _check_source(model, source)
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError, KeyError, ImportError) as error:
        # Diffusers raises all of these for damaged folders; the cause stays attached.
        lines = str(error).strip().splitlines()
        cause = lines[0] if lines else type(error).__name__
        raise ModelLoadError(f"model {model!r} cannot be loaded as a Diffusers pipeline: {cause}") from error
    return pipe.to(device)


def _check_source(model: str, source: str) -> None:
    """Refuse folders that are not pipelines, and paths that do not exist, before any network is asked."""
    path = Path(source)
    accepted = f"accepted are {', '.join(map(repr, BUNDLED_MODELS))}, a Diffusers folder, or a Hub id 'owner/name'"
    if path.exists() and not (path / "model_index.json").is_file():
        raise ModelLoadError(
            f"model {model!r} is no Diffusers pipeline folder, model_index.json is missing; {accepted}"
        )
    if not path.exists() and (source.count("/") != 1 or source.startswith(("/", ".", "~"))):
        raise ModelLoadError(f"model {model!r} does not exist; {accepted}")
