"""The folder of a run, and what is read from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError, FastDitError


class VBenchError(FastDitError, RuntimeError):
    """A run is incomplete, was changed by hand, or its results must not be turned into a score."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what: `videos/` holds clips and nothing else, for VBench takes any other file for one.

    Args:
        root: Folder of one model under one method.
    """

    root: Path

    @property
    def manifest(self) -> Path:
        """What is to be generated."""
        return self.root / "manifest.json"

    @property
    def suite(self) -> Path:
        """Copy of the prompt suite, byte by byte."""
        return self.root / "suite.json"

    @property
    def settings(self) -> Path:
        """What the clips are made with."""
        return self.root / "generation.json"

    @property
    def videos(self) -> Path:
        """The clips."""
        return self.root / "videos"

    @property
    def records(self) -> Path:
        """One file of facts for every clip."""
        return self.root / "records"

    @property
    def staging(self) -> Path:
        """Clips in work, and the locks of those who make them."""
        return self.root / "staging"

    @property
    def results(self) -> Path:
        """The official result files, untouched."""
        return self.root / "vbench" / "evaluation_results"

    @property
    def meta(self) -> Path:
        """Coverage and weights of the official results; outside the folder that is packed."""
        return self.root / "vbench" / "vbench_meta.json"


def read_json(path: Path, what: str) -> Any:
    """Data of a JSON file.

    Args:
        path: The file.
        what: Its role, for the message.

    Raises:
        ConfigError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error}") from error


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
