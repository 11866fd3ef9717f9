"""Clips of a suite on disk, made one by one: none lost, none made twice, by one process or by many.

The folder holds, for every row (dense, or a method) and clip, `frames/<row>/<clip>.npz` (8 bit, lossless),
`videos/<row>/<clip>.mp4` (to look at) and `records/<row>/<clip>.json`, which is written last and says how large the two
others are: a clip without its record, or with another size, does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdit.errors import InvalidInputError
from fastdit.whole_files import whole_file, write_json
from fastdit_eval.vbench.clip_files import claim
from fastdit_eval.vbench.generation import Tally

DENSE = "dense"

Frames = npt.NDArray[np.float32]
MakeClip = Callable[[str, int, Path], tuple[Frames, dict[str, Any]]]
"""Called with a row, the number of a clip and where its video goes; returns frames `[F, H, W, 3]` and facts."""


@dataclass(frozen=True)
class ClipStore:
    """The folder of a suite.

    Args:
        root: The folder.
    """

    root: Path

    def frames(self, row: str) -> Path:
        """Folder of a row's lossless frames."""
        return self.root / "frames" / row

    def videos(self, row: str) -> Path:
        """Folder of a row's encoded videos."""
        return self.root / "videos" / row

    def record_file(self, row: str, clip: str) -> Path:
        """File of a clip's record."""
        return self.root / "records" / row / f"{clip}.json"

    def read_record(self, row: str, clip: str) -> dict[str, Any] | None:
        """Facts of a clip, or `None` if it is not there, or not whole."""
        try:
            record = json.loads(self.record_file(row, clip).read_text())
            sizes = {path: (self.root / path).stat().st_size for path in record["files"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if record["clip"] == clip and sizes == record["files"] else None

    def records(self, row: str, clips: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Records of a row by clip, of those that are there."""
        found = {clip: self.read_record(row, clip) for clip in clips}
        return {clip: record for clip, record in found.items() if record is not None}

    def is_complete(self, row: str, clips: Sequence[str]) -> bool:
        """Whether a row has all clips."""
        return all(self.read_record(row, clip) is not None for clip in clips)

    def keep(self, row: str, clip: str, frames: Frames, facts: dict[str, Any]) -> None:
        """Write frames and record of a clip whose video is there; the record last."""
        raw = self.frames(row) / f"{clip}.npz"
        with whole_file(raw, make_folder=True) as partial:
            np.savez_compressed(partial, frames=(frames.clip(0, 1) * 255).round().astype(np.uint8))
        files = {path.relative_to(self.root).as_posix(): path.stat().st_size for path in (raw, self.video(row, clip))}
        write_json(self.record_file(row, clip), {"row": row, "clip": clip, "files": files, **facts})

    def video(self, row: str, clip: str) -> Path:
        """File of a clip's encoded video."""
        return self.videos(row) / f"{clip}.mp4"


def make_clips(
    store: ClipStore,
    rows: Sequence[str],
    clips: Sequence[str],
    share: Iterable[int],
    make: MakeClip,
    progress: Callable[[str, bool], None] = lambda text, made: None,
) -> Tally:
    """Make the clips that are not there yet, all rows of a clip one after the other.

    Every second clip takes the rows backwards, so that what else the machine does weighs on no row more than on others.

    Args:
        store: Where they go.
        rows: Dense and methods.
        clips: Names of all clips.
        share: Numbers of this process's clips, e.g. `range(rank, len(clips), num_processes)`.
        make: Makes one.
        progress: Told the clip and whether it was made just now, for every clip and row.

    Raises:
        InvalidInputError: A made clip has frames that are no numbers.
    """
    tally = Tally()
    for number in share:
        with claim(store.root / "locks" / f"{number:05d}.lock") as mine:
            for row in rows if number % 2 == 0 else reversed(rows):
                made = False
                if not mine:
                    tally.elsewhere += 1
                elif store.read_record(row, clips[number]) is not None:
                    tally.kept += 1
                else:
                    _make_one(store, row, number, clips[number], make)
                    tally.made += 1
                    made = True
                progress(f"{row}: {clips[number]}", made)
    return tally


def _make_one(store: ClipStore, row: str, number: int, clip: str, make: MakeClip) -> None:
    # What is left of a clip that was cut off must not stay beside the new one's files.
    store.record_file(row, clip).unlink(missing_ok=True)
    video = store.video(row, clip)
    video.parent.mkdir(parents=True, exist_ok=True)
    frames, facts = make(row, number, video)
    if not np.isfinite(frames).all():
        raise InvalidInputError(f"{row}: {clip}: the frames hold NaN or infinity: nothing can be measured on them")
    store.keep(row, clip, frames, facts)
