"""How much the error of a phase matters to the frames: measured by runs that are sparse from that phase on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdit.plan import DENSE, Phase, TransformerIdentity
from fastdit.search.results import Arrays
from fastdit.search.tables import OrderTables, known_orders, layer_errors

# Of the error with a phase sparse, the least share that is put down to that phase: where later phases have spoilt the
# frames already, earlier ones add little, which does not mean that they matter little.
LEAST_SHARE = 0.05


def sparse_from(
    phase: int,
    ends: Sequence[float],
    mode: str,
    transformers: Sequence[TransformerIdentity],
    orders: Sequence[OrderTables] | None = None,
) -> tuple[Phase, ...]:
    """Phases of a plan that is dense before one phase, and has one mode in all heads from there on.

    Args:
        phase: Number of the phase.
        ends: Ends of the phases.
        mode: Name of the mode.
        transformers: The pipeline's.
        orders: Token orders of the mode in each phase; `None` to settle them.
    """
    shape = [(one.num_layers, one.num_heads) for one in transformers]
    return tuple(
        _uniform(shape, end, DENSE)
        if place < phase
        else _uniform(shape, end, mode, None if orders is None else known_orders(orders[place]))
        for place, end in enumerate(ends)
    )


def phase_gains(
    mse: Sequence[float | None],
    measured: Sequence[Arrays],
    transformers: Sequence[TransformerIdentity],
    steps: Sequence[Sequence[Sequence[int]]],
    column: int,
) -> list[float]:
    """Error of the frames that a phase adds, over the summed errors of its heads.

    Args:
        mse: Mean squared error of the frames of the runs sparse from each phase on; `None` for phases without steps.
        measured: Arrays of the prompt of these runs.
        transformers: The pipeline's.
        steps: By `steps_in_phases`.
        column: Number of the mode of these runs.
    """
    weighed = layer_errors(measured, transformers, steps)
    gains, behind = [0.0] * len(mse), 0.0
    for phase in reversed(range(len(mse))):
        value = mse[phase]
        if value is None:
            continue
        caused = sum(float(np.nansum(error[phase, ..., column])) for error in weighed)
        added = max(value - behind, LEAST_SHARE * value)
        # As for layers: without an error there is nothing to hold the result against.
        gains[phase] = added / caused if caused > 0 else 1.0
        behind = value
    return gains


def _uniform(shape: Sequence[tuple[int, int]], until: float, mode: str, orders: OrderTables | None = None) -> Phase:
    """A phase in which every head has one mode; its density and error are not known and noted as those of dense."""

    def table(value: Any) -> Any:
        return tuple(tuple((value,) * heads for _ in range(layers)) for layers, heads in shape)

    noted: dict[str, Any] = {"modes": table(mode), "density": table(1.0), "error": table(0.0), "orders": orders}
    return Phase(until=until, refresh_every=1, **noted)
