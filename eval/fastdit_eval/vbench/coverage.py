"""Checks of the folder of clips before the official package sees it, which itself scores whatever it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit_eval.vbench.clip_files import count_frames
from fastdit_eval.vbench.files import RunFolder, VBenchError, sha256_of
from fastdit_eval.vbench.generation import read_record
from fastdit_eval.vbench.manifest import Manifest
from fastdit_eval.vbench.naming import edition_of, prompt_of_name

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Clips of one dimension.

    Args:
        num_prompts: Prompts of the dimension.
        num_expected: Clips that VBench wants.
        missing: Those that are not there, or cannot be read.
    """

    num_prompts: int
    num_expected: int
    missing: tuple[str, ...]

    def as_row(self) -> list[int]:
        """`[prompts, expected, found]`."""
        return [self.num_prompts, self.num_expected, self.num_expected - len(self.missing)]


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Refuse anything but planned clips in a folder of clips.

    VBench takes the ending of all clips from whichever file is listed first, so that one stray file makes every score
    NaN, without an error.

    Raises:
        VBenchError: The folder is missing, or has a file or folder that is no planned clip.
    """
    if not folder.is_dir():
        raise VBenchError(f"{folder} does not exist: generate the clips first")
    planned = {clip.file for clip in manifest.clips}
    stray = sorted(path.name for path in folder.iterdir() if path.name not in planned)
    if stray:
        raise VBenchError(
            f"{folder} holds {len(stray)} entries that are no clips of the plan ({_some(stray)}): "
            "VBench would misread the folder; move them away or rename them"
        )


def unreadable_clips(run: RunFolder, manifest: Manifest, files: Sequence[str]) -> tuple[tuple[str, ...], list[float]]:
    """Files that are missing or do not decode to their recorded frames, and the seconds of the others.

    Args:
        run: The run's folder.
        manifest: The plan.
        files: Names to look at.
    """
    bad, seconds = [], []
    wanted = set(files)
    for number, clip in enumerate(manifest.clips):
        if clip.file not in wanted:
            continue
        video = run.videos / clip.file
        counted = count_frames(video) if video.is_file() else None
        record = read_record(run, number, clip)
        if counted is None or (record is not None and counted[0] != record["num_frames"]):
            bad.append(clip.file)
        else:
            seconds.append(counted[1] if record is None else record["num_frames"] / record["fps"])
    return tuple(bad), seconds


def edition(seconds: Sequence[float]) -> str | None:
    """Edition of VBench that the clips belong to by their length; `None` without clips."""
    return edition_of(max(seconds)) if seconds else None


def coverage_of(manifest: Manifest, dimension: str, bad: Sequence[str]) -> Coverage:
    """Coverage of one dimension.

    Args:
        manifest: The plan.
        dimension: One of the plan's.
        bad: Names that are missing or unreadable.
    """
    expected = manifest.expected(dimension)
    return Coverage(
        num_prompts=manifest.num_prompts(dimension),
        num_expected=len(expected),
        missing=tuple(sorted(set(expected) & set(bad))),
    )


def check_whole(coverage: Coverage, dimension: str) -> None:
    """Refuse a partial set: VBench would only print a warning and average what is there.

    Raises:
        VBenchError: Clips are missing.
    """
    if coverage.missing:
        raise VBenchError(
            f"{dimension}: {len(coverage.missing)} of {coverage.num_expected} clips are missing or unreadable "
            f"({_some(coverage.missing)}): go on with 'fastdit eval vbench generate'"
        )


def check_filtered(run: RunFolder, manifest: Manifest, folder: Path, dimension: str) -> dict[str, Any]:
    """Check the folder that VBench's static filter wrote: up to 5 static clips a prompt, all of them this run's.

    Returns:
        `{"num_prompts", "num_clips", "short": {prompt: clips}}`; `short` names prompts with fewer than 5.

    Raises:
        VBenchError: It holds more than 5 clips of a prompt, none at all, or a file that is no clip of this run.
    """
    allowed = set(manifest.expected(dimension))
    counts = {prompt.prompt_en: 0 for prompt in manifest.prompts if dimension in prompt.dimensions}
    made: dict[str, set[str]] = {}
    for number, clip in enumerate(manifest.clips):
        record = read_record(run, number, clip)
        if record is not None:
            made.setdefault(manifest.prompts[clip.prompt].prompt_en, set()).add(record["sha256"])
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        parts = prompt_of_name(path.name)
        if parts is None or path.name not in allowed:
            raise VBenchError(
                f"{path} is not among the 5 clips a prompt that the static filter leaves: this is an unfiltered set "
                "of 25; run VBench's static_filter on the clips and give its folder filtered_videos"
            )
        if sha256_of(path) not in made.get(parts[0], set()):
            raise VBenchError(f"{path} is no clip of this run for its prompt")
        counts[parts[0]] += 1
    if not paths:
        raise VBenchError(f"{folder} holds no static clips")
    short = {prompt: count for prompt, count in counts.items() if count < 5}
    return {"num_prompts": len(counts), "num_clips": len(paths), "short": short}


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
