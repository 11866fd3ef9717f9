"""Results of a run folder: one JSON file for each, `results/<kind>-<name>.json`, replaced in one step.

`fastdit.whole_files.write_json` writes it. Two writers of different results never touch the same file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastdit.errors import InvalidInputError

FOLDER = "results"


def result_path(run: Path, kind: str, name: str) -> Path:
    """Where a result of a run folder is.

    Args:
        run: The run folder.
        kind: `fidelity`, `quality`, `speed` or `judge`.
        name: What was measured, e.g. the method.

    Raises:
        InvalidInputError: The name does not do as part of a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", name):
        raise InvalidInputError(f"name={name!r}: accepted are letters, digits, '.', '_' and '-', e.g. adaptive-0.3")
    return run / FOLDER / f"{kind}-{name}.json"


def read_result(path: Path) -> dict[str, Any] | None:
    """A result, or `None` if there is none yet.

    Raises:
        InvalidInputError: The file is damaged.
    """
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}; remove it and measure again") from error
    if not isinstance(result, dict):
        raise InvalidInputError(f"{path} holds no JSON object; remove it and measure again")
    return result


def read_results(run: Path, kind: str) -> dict[str, dict[str, Any]]:
    """All results of a kind by name."""
    found = {}
    for path in sorted((run / FOLDER).glob(f"{kind}-*.json")):
        result = read_result(path)
        assert result is not None, "just listed"
        found[path.stem.removeprefix(f"{kind}-")] = result
    return found
