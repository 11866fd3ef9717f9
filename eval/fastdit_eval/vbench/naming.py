"""How VBench names clips, how many samples it wants, and which of its editions a clip belongs to."""

from __future__ import annotations

import re
from collections.abc import Collection

from fastdit.errors import ConfigError
from fastdit_eval.vbench.dimensions import DIVERSITY, FLICKER

BENCHMARKS = ("vbench", "vbench-long", "vbench-2.0")
LONG_SECONDS = 5.0
LONG_RULE = "VBench's rule: clips under 5.0 s belong to VBench, clips of 5.0 s and more to VBench-Long"
FLICKER_SAMPLES = 25
STANDARD_SAMPLES = 5
MAX_NAME_BYTES = 255


def num_samples(dimensions: Collection[str], benchmark: str) -> int:
    """Clips of one prompt: 5, but 25 for `temporal_flickering`; in VBench-2.0 3, but 20 for `Diversity`.

    Args:
        dimensions: Dimensions the prompt serves.
        benchmark: One of `BENCHMARKS`.
    """
    if benchmark == "vbench-2.0":
        return 20 if DIVERSITY in dimensions else 3
    return FLICKER_SAMPLES if FLICKER in dimensions else STANDARD_SAMPLES


def clip_name(prompt: str, index: int, benchmark: str) -> str:
    """`<prompt>-<index>.mp4`; VBench-2.0 cuts the prompt after 180 characters.

    Args:
        prompt: The suite's own prompt, also where another text was given to the model.
        index: Number of the sample, from 0.
        benchmark: One of `BENCHMARKS`.

    Raises:
        ConfigError: No file can have this name.
    """
    stem = prompt[:180] if benchmark == "vbench-2.0" else prompt
    name = f"{stem}-{index}.mp4"
    if "/" in name or "\0" in name or stem.startswith("."):
        raise ConfigError(
            f"prompt {prompt!r}: a file cannot be called so ('/', NUL and a leading '.' are not accepted)"
        )
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise ConfigError(f"prompt {prompt[:60]!r}...: its file name has {size} bytes, accepted are {MAX_NAME_BYTES}")
    return name


def prompt_of_name(name: str) -> tuple[str, int] | None:
    """Prompt and sample of `<prompt>-<index>.mp4`, or `None`."""
    found = re.fullmatch(r"(.+)-(\d+)\.mp4", name, flags=re.DOTALL)
    return None if found is None else (found[1], int(found[2]))


def edition_of(seconds: float) -> str:
    """The edition of VBench that a clip of this length belongs to on the leaderboard."""
    return "vbench-long" if seconds >= LONG_SECONDS else "vbench"
