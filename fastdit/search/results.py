"""Results that survive: each finished piece of a search is a file, read back instead of being computed again."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.errors import ConfigError
from fastdit.whole_files import whole_file, write_json

Arrays = dict[str, np.ndarray[Any, Any]]
SETTINGS = "settings.json"
# What reading a file that was cut off or overwritten may raise.
DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
# Added to every group: wall and processor seconds that it took, without those of groups computed on the way.
SECONDS = "seconds"


class ResultFolder:
    """Named groups of arrays in a folder, or in memory alone.

    Args:
        folder: Created if missing; `None` keeps nothing beyond the process.
        settings: What the results depend on. A folder with other settings is refused.

    Raises:
        ConfigError: The folder has results of other settings.
        OutputError: It cannot be written.

    Attributes:
        used: Seconds, wall and processor, that each group which was asked for took when it was computed.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._held: dict[str, Arrays] = {}
        self.used: dict[str, tuple[float, float]] = {}
        self._inner = [np.zeros(2)]
        if folder is None:
            return
        path = folder / SETTINGS
        if path.exists():
            # As plain data, the way the file has them.
            self._check(_read_settings(path), json.loads(json.dumps(settings)))
        else:
            write_json(path, settings)

    def _check(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{str(self._folder)!r} holds results of other settings ({name}): give another folder, "
                    "or the settings it was begun with"
                )

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays called `name`: from memory, from the folder, or computed and kept."""
        if name not in self._held:
            found = self._read(name)
            if found is None:
                found = self._timed(compute)
                self._keep(name, found)
            self._held[name] = found
        wall, processor = self._held[name][SECONDS].tolist()
        self.used[name] = (wall, processor)
        return self._held[name]

    def _timed(self, compute: Callable[[], Arrays]) -> Arrays:
        self._inner.append(np.zeros(2))
        start = np.array([time.perf_counter(), time.process_time()])
        try:
            found = compute()
        finally:
            spent = np.array([time.perf_counter(), time.process_time()]) - start
            inner = self._inner.pop()
            self._inner[-1] += spent
        return {**found, SECONDS: spent - inner}

    @property
    def computed(self) -> float:
        """Processor seconds that this object has computed for."""
        return float(self._inner[0][1])

    def seconds(self, name: str) -> tuple[float, float]:
        """Wall and processor seconds that a group took, 0 if there is none."""
        found = self._held.get(name) or self._read(name)
        if found is None:
            return 0.0, 0.0
        wall, processor = found[SECONDS].tolist()
        return wall, processor

    def has(self, name: str) -> bool:
        """Whether `get` would find it."""
        return name in self._held or (self._folder is not None and self._path(name).exists())

    def forget(self, name: str) -> None:
        """Drop it from memory, not from the folder; without a folder it stays."""
        if self._folder is not None:
            self._held.pop(name, None)

    def _path(self, name: str) -> Path:
        assert self._folder is not None, "asked only where there is one"
        return self._folder / f"{name}.npz"

    def _read(self, name: str) -> Arrays | None:
        if self._folder is None or not self._path(name).exists():
            return None
        try:
            with np.load(self._path(name), allow_pickle=False) as data:
                return {key: data[key] for key in data.files}
        except DAMAGED as error:
            raise ConfigError(f"{str(self._path(name))!r} is damaged: remove it, it is computed again") from error

    def _keep(self, name: str, arrays: Arrays) -> None:
        if self._folder is None:
            return
        with whole_file(self._path(name)) as partial:
            np.savez(partial, allow_pickle=False, **arrays)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{str(path)!r} is damaged: give another folder")
    return found
