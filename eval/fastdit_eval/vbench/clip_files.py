"""Reading what a clip file holds, by decoding it, and claims that keep two processes from one clip."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg


def count_frames(path: Path) -> tuple[int, float] | None:
    """Frames and seconds of a video that decodes, else `None`: a truncated file is no video.

    Args:
        path: The file.
    """
    try:
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        return None
    return (int(frames), float(seconds)) if frames else None


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yield whether this process alone holds the claim; the system takes it back when the process dies.

    Args:
        path: Lock file; created, and left behind empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
