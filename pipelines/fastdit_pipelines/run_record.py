"""The record of what a run is made with, by which a stopped run is known again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit.whole_files import write_json


def begin_run(folder: Path, record: dict[str, Any], name: str = "run.json", *, writes: bool = True) -> None:
    """Write what the run is made with, or check that the folder holds a run of the same settings.

    Args:
        folder: The run's folder.
        record: What it is made with, plain data.
        name: File of the record.
        writes: Whether to write it, or to check alone.

    Raises:
        ConfigError: The folder holds another run.
    """
    path = folder / name
    record = json.loads(json.dumps(record))
    if path.exists():
        earlier = json.loads(path.read_text())
        other = [key for key in record if earlier.get(key) != record[key]]
        if other:
            given = "; ".join(f"{key}={record[key]!r}, there it was {earlier.get(key)!r}" for key in other)
            raise ConfigError(f"output {str(folder)!r} holds a run with other settings ({given}): give another folder")
    if writes:
        write_json(path, record)
