"""Dense runs that were made for comparisons, kept so that the next comparison costs one run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fastdit_ui.engine import Frames


@dataclass(frozen=True)
class Baseline:
    """A dense run.

    Args:
        frames: `[F, H, W, 3]` in [0, 1].
        seconds: Wall time of the run.
        core_share: CPU time of the worker's thread over wall time; `None` where the pipeline is not on the CPU.
    """

    frames: Frames
    seconds: float
    core_share: float | None = None


class BaselineCache:
    """The latest dense runs within a budget of memory; used by the worker's thread alone.

    Args:
        max_bytes: Budget. The newest run is kept even if it is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Baseline] = OrderedDict()

    def get(self, key: str) -> Baseline | None:
        """The run of these settings, if it is kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, baseline: Baseline) -> None:
        """Keep a run; the longest unused ones make room."""
        self._kept[key] = baseline
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and self.num_bytes() > self._max_bytes:
            self._kept.popitem(last=False)

    def num_bytes(self) -> int:
        """Memory of the frames."""
        return sum(one.frames.nbytes for one in self._kept.values())
