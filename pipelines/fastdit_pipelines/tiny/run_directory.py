"""Where a training run keeps its checkpoint, its settings and its loss curve, so that it can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastdit.whole_files import whole_file, write_json


def save_whole(data: object, path: Path) -> None:
    """`torch.save` in one step: `path` holds all of the data, or what it held before."""
    # Into an open file: of a path, the archive would keep the temporary name.
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(data, file)


class RunDirectory:
    """A folder with `<name>.pt` (latest checkpoint), `<name>_loss.jsonl` and `<name>_config.json`.

    Args:
        root: The folder; created if missing.
        name: Prefix of the files, one per trained part.
    """

    def __init__(self, root: Path, name: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.checkpoint = root / f"{name}.pt"
        self.curve = root / f"{name}_loss.jsonl"
        self.config = root / f"{name}_config.json"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint in one step, so that a kill leaves the old or the new one, never half."""
        save_whole(state, self.checkpoint)

    def load(self) -> dict[str, Any] | None:
        """The latest checkpoint, or `None` at the first start."""
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        return state

    def write_config(self, config: dict[str, Any]) -> None:
        """Record the settings of the run."""
        write_json(self.config, config)

    def log(self, step: int, **values: float) -> None:
        """Append one point of the loss curve."""
        with self.curve.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def truncate_log(self, step: int) -> None:
        """Drop points past `step`, which a run that died after its last checkpoint will write again."""
        if not self.curve.exists():
            return
        kept = [line for line in self.curve.read_text().splitlines() if json.loads(line)["step"] <= step]
        with whole_file(self.curve) as partial:
            partial.write_text("".join(line + "\n" for line in kept))
