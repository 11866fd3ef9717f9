"""What modes cost, as a share of dense attention: by densities, a kernel's efficiency and the price of selecting."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit.validation import check_fraction, check_positive

# Of dense attention, measured on one thread at 8,640 tokens (docs/selectors-bench.md); GPUs have not been measured.
SELECTION_SHARES = {"adaptive": 0.03, "pyramid": 0.12, "static": 0.0}


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Time of a mode over that of dense attention: `density / efficiency + selection[method]`; dense heads cost 1.

    Where masks are reused, their selection is shared out over the steps that use them.

    Args:
        efficiency: Speed of the sparse kernel per score, over that of the dense backend.
        selection: Share of dense attention's time that a method takes to select, by its name.
        source: Where the figures come from.
    """

    efficiency: float = 1.0
    selection: Mapping[str, float] = field(default_factory=dict)
    source: str = "attention scores alone"

    def __post_init__(self) -> None:
        check_positive("efficiency", self.efficiency)
        for method, share in self.selection.items():
            check_fraction(f"selection[{method!r}]", share)

    def cost(self, density: float, method: str, steps_per_mask: float = 1.0) -> float:
        """Cost of one head in one step.

        Args:
            density: Share of scores computed.
            method: Name of the method that selects, or `"dense"`.
            steps_per_mask: Steps that a mask is used for.
        """
        if method == "dense":
            return 1.0
        return density / self.efficiency + self.selection.get(method, 0.0) / steps_per_mask

    @classmethod
    def from_bench(cls, path: Path) -> CostModel:
        """The efficiency measured on this machine by `fastdit bench kernels --json`, the median over its cases.

        Raises:
            ConfigError: The file is missing, or holds something else.
        """
        try:
            data: Any = json.loads(path.read_text())
            shares = [float(case["speedup"]) * float(case["density"]) for case in data["cases"]]
            efficiency = statistics.median(shares)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{str(path)!r} holds no kernel timings: make it with fastdit bench kernels") from error
        return cls(efficiency=efficiency, selection=SELECTION_SHARES, source=str(path))
