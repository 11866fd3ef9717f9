"""Makes the videos of a suite and judges them, or judges videos that exist. A stopped run goes on where it was.

A run's folder holds `suite.json`, `run.json` (what the run was made with; `run_<row>.json` for a sparse method),
`videos/<row>/<prompt>-<number>.mp4`, `results/<row>/<prompt>-<number>.json` and, at the end,
`<row>_eval_results.json` in VBench's format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from tqdm.auto import tqdm

import fastdit
from fastdit.errors import ConfigError, OutputError
from fastdit.whole_files import write_json
from fastdit_pipelines.generation import Frames, GenerationSettings, generate, write_video
from fastdit_pipelines.tiny.caption import AskedScene, parse_caption
from fastdit_pipelines.tiny.judge import judge_clip
from fastdit_pipelines.tiny.reading import read_clip
from fastdit_pipelines.tiny.suite import Sample, build_suite, prompt_of_file, vbench_results


def write_suite(folder: Path, samples: Sequence[Sample]) -> None:
    """Write `suite.json`, the prompts of the run."""
    write_json(folder / "suite.json", build_suite([sample.prompt for sample in samples]))


def judge_samples(
    pipe: Any,
    samples: Sequence[Sample],
    call: dict[str, Any],
    fps: int,
    config: fastdit.AttentionConfig | None,
    folder: Path,
    row: str,
) -> list[dict[str, Any]]:
    """Make and judge the videos of one method; those that have a result already are not made again.

    Args:
        pipe: A pipeline that is not enabled.
        samples: What to make; the share of this process.
        call: Call arguments but prompt and seed.
        fps: Frames per second of the written videos.
        config: Sparse method, `None` for the stock pipeline.
        folder: The run's folder.
        row: Name of the method in the folder and in the table.

    Returns:
        Each with `prompt`, `video_path`, `verdicts`, `scores`; judged on the raw frames, not on the written video.
    """
    results = []
    with nullcontext() if config is None else fastdit.enable(pipe, config):
        for sample in tqdm(samples, desc=row):
            target = folder / "results" / row / f"{sample.name}.json"
            if target.exists():
                results.append(json.loads(target.read_text()))
                continue
            frames = generate(pipe, GenerationSettings(prompt=sample.prompt, seed=sample.seed, **call), sample.prompt)
            video = folder / "videos" / row / f"{sample.name}.mp4"
            _make_folder(video.parent)
            write_video(frames, video, fps)
            result = {
                "prompt": sample.prompt,
                "seed": sample.seed,
                "two_objects": sample.two_objects,
                "video_path": f"videos/{row}/{video.name}",
                **judge_frames(frames, parse_caption(sample.prompt)),
            }
            write_json(target, result)
            results.append(result)
    return results


def collect_results(samples: Sequence[Sample], folder: Path, row: str) -> list[dict[str, Any]] | None:
    """What `judge_samples` wrote of these samples in all processes, and `<row>_eval_results.json` of it.

    Returns:
        As `judge_samples`; `None` while a sample has no result yet.
    """
    files = [folder / "results" / row / f"{sample.name}.json" for sample in samples]
    if not all(file.exists() for file in files):
        return None
    results = [json.loads(file.read_text()) for file in files]
    write_json(folder / f"{row}_eval_results.json", vbench_results(results))
    return results


def judge_videos(videos: Path, prompts: Path | None = None) -> list[dict[str, Any]]:
    """Judge the `.mp4` files of a folder.

    Args:
        videos: Folder of videos, each called `<prompt>.mp4` or `<prompt>-<number>.mp4`.
        prompts: JSON file with the prompts instead: `{file name: prompt}`, or a list of
            `{"prompt_en", "video_list"}`. Default `prompts.json` in the folder, if there is one.

    Raises:
        ConfigError: There are no videos, one cannot be read, or its prompt is missing.
    """
    files = sorted(videos.glob("[!.]*.mp4")) if videos.is_dir() else []
    if not files:
        raise ConfigError(f"videos={str(videos)!r}: accepted is a folder with .mp4 files")
    beside = videos / "prompts.json"
    source = prompts if prompts is not None else (beside if beside.is_file() else None)
    named = None if source is None else _read_prompts(source)
    asked: dict[Path, tuple[str, AskedScene]] = {}
    # All prompts are checked before the first video is read.
    for path in files:
        prompt = prompt_of_file(path.stem) if named is None else named.get(path.name)
        if prompt is None:
            raise ConfigError(f"{path.name} has no prompt in {source}: accepted is {{file name: prompt}}")
        asked[path] = (prompt, parse_caption(prompt))
    results = []
    for path in tqdm(files, desc="videos"):
        frames = read_video(path)
        prompt, scene = asked[path]
        two_objects = len(scene.objects) == 2
        results.append(
            {"prompt": prompt, "two_objects": two_objects, "video_path": str(path), **judge_frames(frames, scene)}
        )
    return results


def read_video(path: Path) -> Frames:
    """Frames `[F, H, W, 3]` of a video file, float32 in [0, 1].

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return (iio.imread(path) / 255).astype(np.float32)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a video: {' '.join(str(error).split())[:200]}") from error


def _read_prompts(path: Path) -> dict[str, str]:
    accepted = 'accepted is JSON {"file name": "prompt"} or [{"prompt_en": ..., "video_list": [...]}]'
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts={str(path)!r} cannot be read: {error}; {accepted}") from error
    if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
        return data
    if isinstance(data, list) and all(isinstance(item, dict) and "prompt_en" in item for item in data):
        return {Path(name).name: item["prompt_en"] for item in data for name in item.get("video_list", [])}
    raise ConfigError(f"prompts={str(path)!r}: {accepted}")


def judge_frames(frames: Frames, asked: AskedScene) -> dict[str, Any]:
    """`verdicts` and `scores` of one video, by dimension.

    Args:
        frames: `[F, H, W, 3]` in [0, 1].
        asked: From `parse_caption`.
    """
    judgement = judge_clip(read_clip(torch.from_numpy(frames).permute(0, 3, 1, 2)), asked)
    return {"verdicts": judgement.verdicts, "scores": judgement.scores}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}; give a writable folder") from error
