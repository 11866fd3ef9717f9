"""Finished cases of a long measurement, kept as they are done, so that one that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
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
        if path is None:
            return
        head = json.dumps(settings, sort_keys=True)
        whole, _, cut = self._read(path).rpartition("\n")
        if not whole:
            self._write(f"{head}\n", "w")
            return
        first, *rest = whole.split("\n")
        if first != head:
            raise ConfigError(
                f"{path} holds cases of other settings, or of other versions: remove it, or give another output"
            )
        for entry in map(json.loads, rest):
            self._known[entry["key"]] = entry["cases"]
        if cut:
            self._write(f"{whole}\n", "w")

    def get(self, key: str, measure: Callable[[], Cases]) -> Cases:
        """The cases of one part, measured unless they are known.

        Args:
            key: Names the part.
            measure: Measures it.

        Raises:
            OutputError: The file cannot be written.
        """
        if key not in self._known:
            self._known[key] = measure()
            if self.path is not None:
                self._write(json.dumps({"key": key, "cases": self._known[key]}) + "\n", "a")
        return self._known[key]

    def remove(self) -> None:
        """Delete the file: the report has everything."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, text: str, mode: str) -> None:
        assert self.path is not None, "asked where there is a file"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                file.write(text)
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
