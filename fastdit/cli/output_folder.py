"""Results appear in the output folder all at once, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdit.errors import OutputError


@contextmanager
def staged_output(folder: Path) -> Iterator[Path]:
    """Yield a staging folder whose files move into `folder` when the block succeeds.

    Args:
        folder: Target; created if missing. Checked before the block runs, so that hours of work are not lost to it.

    Raises:
        OutputError: `folder` cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        _remove_empty(missing)
        raise OutputError(
            f"output {str(folder)!r} cannot be written: {error.strerror}; give a writable folder"
        ) from error
    try:
        yield staging
        for path in sorted(staging.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise OutputError(f"output {str(folder)!r} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(missing)


def _remove_empty(created: list[Path]) -> None:
    """Take back folders made for nothing, innermost first."""
    for path in created:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
