"""What the tab Look inside answers with; no part of the page itself."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from fastdit.errors import InvalidInputError
from fastdit.recorded_call import RecordedCall
from fastdit.recorded_run import RecordedRun, Site
from fastdit_ui.frame_sheet import Pixels
from fastdit_ui.recording import open_frames, open_run
from fastdit_ui.runs import RunRecord
from fastdit_ui.state import AppState


@dataclass(frozen=True)
class Choices:
    """What can be chosen in a recorded run.

    Args:
        transformers: Numbers of those that were recorded.
        layers: Layers whose calls were kept.
        steps: Steps whose calls were kept.
        heads: Number of heads.
        grid: Latent frames, patch rows and columns.
    """

    transformers: list[int]
    layers: list[int]
    steps: list[int]
    heads: int
    grid: tuple[int, int, int]


class RunReader:
    """Reads recorded runs for pages; keeps the call that was read last, since a click asks for it again.

    Args:
        state: The server.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._last: tuple[str, float, Site, RecordedCall, Pixels] | None = None

    def run(self, name: str) -> tuple[RunRecord, RecordedRun]:
        """A recorded run.

        Raises:
            InvalidInputError: There is none of this name.
        """
        if not name:
            raise InvalidInputError("no recorded run is chosen: record one first")
        return open_run(self._state.runs, name)

    def call(self, name: str, site: Site) -> tuple[RecordedCall, Pixels]:
        """A recorded call and the frames of its video.

        Raises:
            InvalidInputError: It was not recorded.
        """
        record, run = self.run(name)
        with self._lock:
            last = self._last
        if last is not None and last[:3] == (name, record.modified, site):
            return last[3], last[4]
        call, frames = run.call(site), open_frames(record)
        with self._lock:
            self._last = (name, record.modified, site, call, frames)
        return call, frames

    def choices(self, name: str) -> Choices:
        """What can be chosen in a run.

        Raises:
            InvalidInputError: There is none of this name, or nothing of it found room.
        """
        _, run = self.run(name)
        if not run.calls:
            raise InvalidInputError(
                f"run {name} has no recorded calls: nothing found room; record fewer layers or steps"
            )
        sites = sorted(run.calls)
        call, _ = self.call(name, middle(sites))
        grid = call.grid
        transformers, layers, steps = (sorted({site[axis] for site in sites}) for axis in range(3))
        return Choices(transformers, layers, steps, call.num_heads, (grid.frames, grid.height, grid.width))

    def middle_of(self, name: str) -> tuple[Site, tuple[int, int, int]]:
        """A site and a patch from the middle of a run, to begin with.

        Raises:
            InvalidInputError: There is none of this name, or nothing of it found room.
        """
        frames, height, width = self.choices(name).grid
        return middle(sorted(self.run(name)[1].calls)), (frames // 2, height // 2, width // 2)


def middle(sites: list[Site]) -> Site:
    """A site from the middle of the run, which says more than the first, where all may be dense."""
    return sites[len(sites) // 2]


def whole(name: str, value: Any) -> int:
    """A number from a form.

    Raises:
        InvalidInputError: It is none.
    """
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        raise InvalidInputError(f"{name}={value!r}: accepted is a whole number")
    return int(value)


def site_of(transformer: Any, layer: Any, step: Any) -> Site:
    """A site from the values of a form.

    Raises:
        InvalidInputError: One is no number.
    """
    return whole("transformer", transformer), whole("layer", layer), whole("step", step)


def describe_run(record: RunRecord, run: RecordedRun) -> list[tuple[str, str]]:
    """Figures of a recorded run, as names and values."""
    report = record.report
    layers = sorted({site[1] for site in run.calls})
    steps = sorted({site[2] for site in run.calls})
    rows = [
        ("Prompt", str(report.get("prompt", ""))),
        ("Method", f"{report.get('title', '')} ({report.get('method', '')})"),
        ("Seed", str(report.get("seed", ""))),
        ("Density, whole run", f"{report.get('density', float('nan')):.3f}"),
        ("Layers recorded", ", ".join(map(str, layers))),
        ("Steps recorded", ", ".join(map(str, steps))),
    ]
    if run.left_out:
        rows.append(("Calls left out for lack of room", str(run.left_out)))
    return rows
