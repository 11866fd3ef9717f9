"""VMAF through the libvmaf of the ffmpeg that imageio-ffmpeg ships."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg

from fastdit_eval.clips import Clip
from fastdit_eval.metric import MetricUnavailableError

MODEL = "vmaf_v0.6.1"
# Frames are compared by their number; time stamps of two containers may differ.
BY_NUMBER = "setpts=N/25/TB,format=yuv420p"


def vmaf_per_frame(reference: Clip, other: Clip) -> list[float]:
    """VMAF v0.6.1 of each frame, 0 to 100, on 4:2:0 video.

    Args:
        reference: Dense frames.
        other: Sparse frames, as many.

    Raises:
        MetricUnavailableError: This ffmpeg has no libvmaf, or it failed.
    """
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    filters = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
    if " libvmaf " not in filters.stdout:
        raise MetricUnavailableError(f"{ffmpeg} is built without libvmaf; install a newer imageio-ffmpeg")
    with tempfile.TemporaryDirectory(prefix="fastdit-vmaf-") as name:
        folder = Path(name)
        inputs = [*_input(other, folder / "other.rgb"), *_input(reference, folder / "reference.rgb")]
        graph = f"[0:v]{BY_NUMBER}[a];[1:v]{BY_NUMBER}[b];[a][b]libvmaf=model=version={MODEL}:log_fmt=json:log_path=log"
        run = subprocess.run(
            [ffmpeg, "-hide_banner", "-nostdin", *inputs, "-lavfi", graph, "-f", "null", "-"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        log = folder / "log"
        if run.returncode != 0 or not log.is_file():
            raise MetricUnavailableError(f"ffmpeg failed: {' '.join(run.stderr.split())[-200:]}")
        frames = json.loads(log.read_text())["frames"]
    if len(frames) != len(reference.frames):
        raise MetricUnavailableError(f"libvmaf compared {len(frames)} of {len(reference.frames)} frames")
    return [float(frame["metrics"]["vmaf"]) for frame in frames]


def _input(clip: Clip, raw: Path) -> list[str]:
    """The options that name a clip as an input; raw frames are written to `raw` first."""
    if clip.source == "video":
        return ["-i", str(clip.path.resolve())]
    raw.write_bytes(clip.bytes().tobytes())
    height, width = clip.frames.shape[1:3]
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25", "-i", str(raw)]
