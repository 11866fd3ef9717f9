"""Files that are whole or absent: written beside their target, then renamed onto it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdit.errors import OutputError


@contextmanager
def whole_file(path: Path, *, make_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path whose file takes the name `path` when the block succeeds.

    A failure leaves no trace; a kill or a loss of power leaves at `path` the old file or the new one, never half.

    Args:
        path: Target. The temporary file is in the same folder and has the same ending.
        make_folder: Create the folder if it is missing.

    Raises:
        OutputError: The file cannot be written.
    """
    # Several processes, on several machines too, may write the same file; a long name leaves room for the token.
    partial = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch(exist_ok=False)
            yield partial
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{str(path)!r} cannot be written: {reason}; give a writable folder") from error


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, whole or not at all.

    Args:
        path: Target; its folder is created.
        data: Plain data.

    Raises:
        OutputError: The file cannot be written.
        ValueError: The data hold NaN or an infinity, which are no JSON.
    """
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    with whole_file(path, make_folder=True) as partial:
        partial.write_text(text)
