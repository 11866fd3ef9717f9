"""Generating a suite: no clip twice, no half-written clip counted, a restart loses only the clip in work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit.whole_files import write_json
from fastdit_eval.vbench.clip_files import claim, count_frames
from fastdit_eval.vbench.files import RunFolder, VBenchError, read_json, sha256_of
from fastdit_eval.vbench.manifest import Clip, Manifest

MakeClip = Callable[[str, int, Path], dict[str, Any]]
"""Called with the model's prompt, the seed and the target file; returns facts, with `num_frames` and `fps`."""


@dataclass(kw_only=True)
class Tally:
    """What one process did.

    Args:
        made: Clips made now.
        kept: Clips that were there already.
        elsewhere: Clips that another process holds.
    """

    made: int = 0
    kept: int = 0
    elsewhere: int = 0


def begin_generation(run: RunFolder, settings: dict[str, Any]) -> None:
    """Record what the clips are made with; a folder that has clips must have been made with the same.

    Args:
        run: The run's folder.
        settings: Model, method and call arguments: plain data.

    Raises:
        ConfigError: The folder holds clips of other settings.
    """
    settings = json.loads(json.dumps(settings))
    if run.settings.exists():
        earlier = read_json(run.settings, "settings")
        other = sorted(key for key in settings | earlier if settings.get(key) != earlier.get(key))
        if other:
            given = "; ".join(f"{key}={settings.get(key)!r}, there it was {earlier.get(key)!r}" for key in other)
            raise ConfigError(f"output {str(run.root)!r} holds clips of other settings ({given}): give another folder")
    else:
        write_json(run.settings, settings)


def share_of(manifest: Manifest, rank: int, num_processes: int) -> list[tuple[int, Clip]]:
    """Numbered clips of one process. The whole suite is dealt out, done or not, so that shares never overlap."""
    return list(enumerate(manifest.clips))[rank::num_processes]


def generate_clips(
    run: RunFolder, manifest: Manifest, clips: Iterable[tuple[int, Clip]], make: MakeClip, batch: int | None = None
) -> Tally:
    """Make the clips that are not there yet.

    A clip is made in `staging/`, its frames are counted, its record is written, and only then it moves to `videos/`:
    a clip in `videos/` with its record is whole.

    Args:
        run: The run's folder.
        manifest: The plan.
        clips: Numbered clips to make, e.g. of `share_of`.
        make: Makes one.
        batch: Stop after so many new clips; default all.

    Raises:
        VBenchError: A file of the plan's name was not made by this run, or a made clip cannot be read back.
    """
    tally = Tally()
    run.videos.mkdir(parents=True, exist_ok=True)
    for number, clip in clips:
        if batch is not None and tally.made >= batch:
            break
        with claim(run.staging / f"{number:05d}.lock") as mine:
            if not mine:
                tally.elsewhere += 1
            elif is_done(run, number, clip):
                tally.kept += 1
            else:
                _make_one(run, manifest, number, clip, make)
                tally.made += 1
    return tally


def is_done(run: RunFolder, number: int, clip: Clip) -> bool:
    """Whether a clip and its record are there, and the clip has the recorded size and as many frames.

    Raises:
        VBenchError: The clip is there without a record: it was not made by this run.
    """
    video = run.videos / clip.file
    if not video.exists():
        return False
    record = read_record(run, number, clip)
    if record is None:
        raise VBenchError(f"{video} has no record: it was not made by this run; move it away")
    if video.stat().st_size != record["size"]:
        return False
    counted = count_frames(video)
    return counted is not None and counted[0] == record["num_frames"]


def read_record(run: RunFolder, number: int, clip: Clip) -> dict[str, Any] | None:
    """Facts of a clip, or `None` before it was made.

    Raises:
        VBenchError: The record is of another clip.
    """
    path = run.records / f"{number:05d}.json"
    if not path.exists():
        return None
    record: dict[str, Any] = read_json(path, "record")
    if record.get("file") != clip.file or record.get("seed") != clip.seed:
        raise VBenchError(f"{path} is of another clip ({record.get('file')!r}): the manifest was changed")
    return record


def _make_one(run: RunFolder, manifest: Manifest, number: int, clip: Clip, make: MakeClip) -> None:
    staged = run.staging / f"{number:05d}.mp4"
    prompt = manifest.prompts[clip.prompt]
    facts = make(prompt.prompt_used, clip.seed, staged)
    counted = count_frames(staged)
    if counted is None or counted[0] != facts["num_frames"]:
        raise VBenchError(f"{staged} of {facts['num_frames']} frames cannot be read back (found {counted})")
    record = {
        "file": clip.file,
        "prompt_en": prompt.prompt_en,
        "prompt_used": prompt.prompt_used,
        "index": clip.index,
        "seed": clip.seed,
        "size": staged.stat().st_size,
        "sha256": sha256_of(staged),
        **facts,
    }
    write_json(run.records / f"{number:05d}.json", record)
    staged.replace(run.videos / clip.file)
