"""Videos of a list of prompts, shared by the processes of `accelerate launch`; a stopped run goes on where it was.

The folder holds `run.json` (what all videos are made with) and, for each prompt, `0000.mp4` and `0000.json`. The latter
is written last and says how large the video is, so that a cut-off video does not count as done.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fastdit
from fastdit.errors import ConfigError
from fastdit.whole_files import write_json
from fastdit_pipelines.generation import GenerationSettings, generate, steps_of, write_video
from fastdit_pipelines.loading import load_pipeline
from fastdit_pipelines.run_record import begin_run


@dataclass(frozen=True)
class ListRun:
    """What one process did.

    Args:
        process_index: Its number.
        num_processes: All of them.
        made: Numbers of the prompts whose videos it made.
        skipped: Numbers of those that were there.
    """

    process_index: int
    num_processes: int
    made: tuple[int, ...]
    skipped: tuple[int, ...]


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines are left out.

    Raises:
        ConfigError: It cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts={str(path)!r} cannot be read: {error}; accepted is a text file") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts={str(path)!r} holds no prompt: accepted is one a line")
    return prompts


def run_list(
    model: str,
    prompts: Sequence[str],
    settings: GenerationSettings,
    config: fastdit.AttentionConfig | None,
    fps: int,
    folder: Path,
    guard: float | None = None,
) -> ListRun:
    """Make the videos that are missing, of this process's share of the prompts.

    Args:
        model: As `load_pipeline` takes it.
        prompts: All prompts, the same in every process.
        settings: The call; its prompt is replaced. Every video starts from the same seed.
        config: Sparse method, `None` for the stock pipeline.
        fps: Frames per second of the written videos.
        folder: Where they go; created if missing.
        guard: As `fastdit.enable` takes it.

    Raises:
        ConfigError: The folder holds videos of other settings or prompts.
        OutputError: The folder cannot be written.
    """
    from accelerate import PartialState

    on_gpu = torch.cuda.is_available()
    state = PartialState(cpu=not on_gpu)
    record = _record(model, settings, config, fps)
    if guard is not None:
        record["guard"] = guard
    begin_run(folder, record, writes=False)
    # The whole list is split, not what is left of it: processes may see different files while others are at work.
    with state.split_between_processes(list(enumerate(prompts))) as share:
        missing = [(number, prompt) for number, prompt in share if not is_done(folder, number, prompt)]
    if missing:
        pipe = load_pipeline(model, device=str(state.device) if on_gpu else "cpu")
        with nullcontext() if config is None else fastdit.enable(pipe, config, guard=guard) as session:
            for number, prompt in missing:
                _make(pipe, session, dataclasses.replace(settings, prompt=prompt), fps, folder, number, record)
    made = tuple(number for number, _ in missing)
    skipped = tuple(number for number, _ in share if number not in made)
    return ListRun(state.process_index, state.num_processes, made, skipped)


def is_done(folder: Path, number: int, prompt: str) -> bool:
    """Whether the video of a prompt is there, and whole.

    Raises:
        ConfigError: There is one of another prompt.
    """
    video, record = folder / f"{number:04d}.mp4", folder / f"{number:04d}.json"
    try:
        earlier = json.loads(record.read_text())
        found, size = earlier["prompt"], earlier["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if found != prompt:
        raise ConfigError(
            f"output {str(folder)!r} holds number {number} of another prompt, {found!r} instead of {prompt!r}: "
            "give another folder, or add prompts at the end of the list only"
        )
    return video.is_file() and video.stat().st_size == size


def _record(
    model: str, settings: GenerationSettings, config: fastdit.AttentionConfig | None, fps: int
) -> dict[str, Any]:
    call = {name: value for name, value in settings.call_arguments().items() if name != "prompt"}
    return {
        "model": model,
        "settings": {**call, "seed": settings.seed, "fps": fps},
        "config": None if config is None else config.to_dict(),
    }


def _make(
    pipe: Any,
    session: Any,
    settings: GenerationSettings,
    fps: int,
    folder: Path,
    number: int,
    record: dict[str, Any],
) -> None:
    video = folder / f"{number:04d}.mp4"
    start = time.perf_counter()
    frames = generate(pipe, settings, f"prompt {number}")
    seconds = time.perf_counter() - start
    # Only now, so that a call that is refused does not tie the folder to its settings.
    begin_run(folder, record)
    write_video(frames, video, fps)
    made = {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "num_inference_steps": steps_of(pipe, settings),
        "seconds": seconds,
        "density": 1.0 if session is None else session.stats.density(),
        "bytes": video.stat().st_size,
    }
    write_json(folder / f"{number:04d}.json", made)
