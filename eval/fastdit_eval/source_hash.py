"""Which code a figure is of: measurements that go on later must not put figures of two versions together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


def hash_sources(packages: Sequence[ModuleType]) -> str:
    """SHA-256 of all Python files of some packages, as hexadecimal digits."""
    found = hashlib.sha256()
    for package in packages:
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                found.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return found.hexdigest()
