"""Finished cases of a long measurement, kept as they are done, so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fastdit.errors import ConfigError, OutputError

Cases = list[dict[str, Any]]


class CaseLog:
    """A file with one line of settings and one line for each finished part of a measurement.

    A line that a kill cut short is measured again.

    Args:
        path: The file; `None` keeps nothing.
        settings: Plain data that all parts depend on.

    Raises:
        ConfigError: The file is of other settings, or no such file.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._known: dict[str, Cases] = {}
        self._head = json.dumps(settings, sort_keys=True)
        if path is None:
            return
        text = self._read(path)
        whole, newline, cut = text.rpartition("\n")
        first, *rest = whole.split("\n")
        if first != self._head if newline else not self._head.startswith(cut):
            raise ConfigError(
                f"{path} holds cases of other settings, or of other versions: remove it, or give another output"
            )
        try:
            self._known = {entry["key"]: entry["cases"] for entry in map(json.loads, rest)}
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is damaged: remove it, or give another output") from error
        if cut:
            os.truncate(path, len(text.encode()) - len(cut.encode()))

    def get(self, key: str, measure: Callable[[], Cases]) -> Cases:
        """The cases of one part, measured unless they are known.

        Args:
            key: Names the part.
            measure: Measures it.

        Raises:
            OutputError: The file cannot be written.
            ValueError: A figure is NaN or infinite, which no report may hold.
        """
        if key not in self._known:
            self._known[key] = measure()
            self._append(json.dumps({"key": key, "cases": self._known[key]}, allow_nan=False))
        return self._known[key]

    def _append(self, line: str) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                # Also where another run into the same folder was done first and removed it.
                file.write((f"{self._head}\n" if file.tell() == 0 else "") + f"{line}\n")
        except OSError as error:
            raise OutputError(f"{str(self.path)!r} cannot be written: {error}; give a writable folder") from error

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; remove it, or give another output") from error


def hash_sources(packages: Sequence[ModuleType]) -> str:
    """SHA-256 of all Python files of some packages: figures of other code are not to be put together."""
    found = hashlib.sha256()
    for package in packages:
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                found.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return found.hexdigest()
