"""Run folders: one folder for each result, in the layout that `fastdit generate --output` leaves.

A run holds `report.json` beside `video.mp4`, or `dense.mp4`, `sparse.mp4` and `compare.png`; comparisons made here also
`side_by_side.mp4` (dense, sparse and difference in one picture, for the synchronised player). Runs appear all at once.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.errors import InvalidInputError, OutputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
REPORT = "report.json"
MAX_REPORT_BYTES = 8 << 20
FILES = ("video.mp4", "dense.mp4", "sparse.mp4", "side_by_side.mp4", "compare.png", REPORT)


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Args:
        name: Its folder's name.
        folder: Where it lies.
        report: Contents of `report.json`.
        modified: When it was written, in seconds since the epoch.
    """

    name: str
    folder: Path
    report: dict[str, Any]
    modified: float

    def file(self, name: str) -> Path | None:
        """A file of the run, if it is one of `FILES` and there; links are not followed."""
        path = self.folder / name
        return path if name in FILES and path.is_file() and not path.is_symlink() else None


class RunStore:
    """The runs of an output folder.

    Args:
        root: The folder; created if missing.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve()
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise OutputError(
                f"output-dir {str(root)!r} cannot be written: {error.strerror}; give a writable folder"
            ) from error

    @contextmanager
    def new(self) -> Iterator[tuple[str, Path]]:
        """Yield the name of a new run and a staging folder, which becomes the run when the block succeeds."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root))
        try:
            yield name, staging
            staging.chmod(0o755)
            staging.replace(self.root / name)
        except OSError as error:
            raise OutputError(f"run {name} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def get(self, name: str) -> RunRecord:
        """A run by its name.

        Raises:
            InvalidInputError: There is no such run, or the name is none.
        """
        record = self._read(self.root / name) if isinstance(name, str) and NAME.fullmatch(name) else None
        if record is None:
            raise InvalidInputError(f"run {str(name)[:100]!r} is not in the library")
        return record

    def list(self) -> list[RunRecord]:
        """All runs, newest first; folders without a readable report are left out."""
        records = (self._read(path) for path in self.root.iterdir() if NAME.fullmatch(path.name))
        return sorted((one for one in records if one is not None), key=lambda one: one.modified, reverse=True)

    def _read(self, folder: Path) -> RunRecord | None:
        path = folder / REPORT
        try:
            if folder.is_symlink() or path.is_symlink() or not path.is_file():
                return None
            status = path.stat()
            if status.st_size > MAX_REPORT_BYTES:
                return None
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return RunRecord(folder.name, folder, report, status.st_mtime) if isinstance(report, dict) else None
