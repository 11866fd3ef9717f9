"""Clips from files: encoded videos and raw frames, alone or as folders of pairs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt

from fastdit.errors import InvalidInputError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
RAW_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a file.

    Args:
        path: Where they come from.
        frames: `[F, H, W, 3]`, uint8 or float32 in [0, 1].
        fps: Frames per second; `None` for raw frames, which do not say.
    """

    path: Path
    frames: npt.NDArray[Any]
    fps: float | None = None

    @property
    def source(self) -> str:
        """`"video"` for decoded files, `"raw"` for frames that no encoder has touched."""
        return "video" if self.path.suffix.lower() in VIDEO_SUFFIXES else "raw"

    def unit(self) -> npt.NDArray[np.float32]:
        """Frames as float32 in [0, 1]."""
        if self.frames.dtype == np.uint8:
            return self.frames.astype(np.float32) / np.float32(255)
        return self.frames.astype(np.float32, copy=False)

    def bytes(self) -> npt.NDArray[np.uint8]:
        """Frames as uint8, rounded to nearest."""
        if self.frames.dtype == np.uint8:
            return self.frames
        return (self.frames.clip(0, 1) * 255).round().astype(np.uint8)


def read_clip(path: Path) -> Clip:
    """Read a video file, or raw frames from a NumPy file.

    Args:
        path: A video, `.npy`, or `.npz` with `frames` or a single array; raw frames are `[F, H, W, 3]`, uint8 or
            floats in [0, 1].

    Raises:
        InvalidInputError: It cannot be read, or does not hold frames.
    """
    suffix = path.suffix.lower()
    if suffix in RAW_SUFFIXES:
        frames = read_array(path)
        if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise InvalidInputError(f"{path} holds shape {frames.shape}: accepted are frames [F, H, W, 3]")
        if frames.dtype != np.uint8 and not _in_unit_range(frames):
            raise InvalidInputError(f"{path} holds {frames.dtype}: accepted are uint8, or floats in [0, 1] without NaN")
        return Clip(path, frames)
    if suffix not in VIDEO_SUFFIXES:
        accepted = ", ".join((*VIDEO_SUFFIXES, *RAW_SUFFIXES))
        raise InvalidInputError(f"{path} is no clip: accepted are files ending in {accepted}")
    try:
        frames = iio.imread(path, plugin="FFMPEG")
        fps = float(iio.immeta(path, plugin="FFMPEG")["fps"])
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as a video: {' '.join(str(error).split())[:200]}; give a whole, readable file"
        ) from error
    return Clip(path, frames, fps)


def read_array(path: Path) -> npt.NDArray[Any]:
    """The array of a `.npy` file, or `frames`, or the only one, of an `.npz` file.

    Raises:
        InvalidInputError: There is none.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}; give a NumPy file") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        name = "frames" if "frames" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
        if name is None:
            raise InvalidInputError(f"{path} holds {', '.join(loaded.files)}: accepted is 'frames' or a single array")
        array: npt.NDArray[Any] = loaded[name]
    return array


def _in_unit_range(frames: npt.NDArray[Any]) -> bool:
    # Decoders of Diffusers clamp to [0, 1]; a little rounding is not a fault, NaN is.
    return bool(np.issubdtype(frames.dtype, np.floating) and np.all(frames >= -1e-3) and np.all(frames <= 1 + 1e-3))


def pair_paths(reference: Path, other: Path, names: Collection[str] | None = None) -> list[tuple[str, Path, Path]]:
    """Pairs of files with the same name: two files are one pair, two folders as many as they hold.

    Args:
        reference: A clip or a folder.
        other: Likewise.
        names: Of folders only these clips, without the ending of the file; `None` for all.

    Returns:
        Name, reference and other of each pair, by name.

    Raises:
        InvalidInputError: A path is missing, a file has no counterpart, or folders hold no clips.
    """
    for path in (reference, other):
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist: give a file or a folder of clips")
    if reference.is_dir() != other.is_dir():
        raise InvalidInputError(f"{reference} and {other}: give two files or two folders")
    if not reference.is_dir():
        return [(reference.stem if reference.stem == other.stem else other.stem, reference, other)]
    found = [_clips_of(folder) for folder in (reference, other)]
    if names is not None:
        found = [{name: path for name, path in clips.items() if name in names} for clips in found]
    unmatched = sorted(found[0].keys() ^ found[1].keys())
    if unmatched or not found[0]:
        listed = ", ".join(map(repr, unmatched[:5])) or "no clips at all"
        raise InvalidInputError(
            f"{reference} and {other} do not match: {len(unmatched)} clips without a counterpart ({listed}); "
            "a mean over the others would hide it: generate what is missing"
        )
    return [(name, path, found[1][name]) for name, path in found[0].items()]


def _clips_of(folder: Path) -> dict[str, Path]:
    """Clips by name; raw frames win over an encoded video of the same name."""
    clips: dict[str, Path] = {}
    for suffixes in (VIDEO_SUFFIXES, RAW_SUFFIXES):
        clips |= {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}
    return dict(sorted(clips.items()))
