"""The one dial, from faster to closer to dense: each position is a method with its settings.

Positions are ordered by the density of their sparse calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastdit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Position:
    """A position of the dial.

    Args:
        name: What it is called.
        method: The method, or "dense".
        settings: Settings over those that suit the model.
        says: What it does, in one sentence.
    """

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    says: str


POSITIONS = (
    Position(
        name="Fastest",
        method="cached",
        settings={"source": "pyramid", "density": 0.1, "dense_steps": 0.2},
        says="Pooled tiles at density 0.10, chosen anew every ten steps; "
        "dense are layer 0 and the first 20 % of the steps.",
    ),
    Position(
        name="Fast",
        method="pyramid",
        settings={"density": 0.15, "dense_steps": 0.2},
        says="Pooled tiles at density 0.15; dense are layer 0 and the first 20 % of the steps.",
    ),
    Position(
        name="Balanced",
        method="pyramid",
        settings={"density": 0.2},
        says="Pooled tiles at density 0.20; dense are layer 0 and as many first steps as suit the model.",
    ),
    Position(
        name="Close",
        method="pyramid",
        settings={"density": 0.35},
        says="Pooled tiles at density 0.35; dense are layer 0 and as many first steps as suit the model.",
    ),
    Position(
        name="Closest",
        method="pyramid",
        settings={"density": 0.5},
        says="Pooled tiles at density 0.50; dense are layer 0 and as many first steps as suit the model.",
    ),
    Position(name="Dense", method="dense", says="The stock pipeline: nothing is skipped."),
)
DEFAULT_POSITION = 2
# Dense cannot be compared with itself.
LAST_SPARSE = len(POSITIONS) - 2


def position_at(dial: float) -> Position:
    """The position of a dial.

    Raises:
        ConfigError: There is none.
    """
    if isinstance(dial, bool) or not isinstance(dial, (int, float)) or dial not in range(len(POSITIONS)):
        raise ConfigError(
            f"dial={dial!r}: accepted are the whole numbers from 0 (fastest) to {len(POSITIONS) - 1} (dense)"
        )
    return POSITIONS[int(dial)]
