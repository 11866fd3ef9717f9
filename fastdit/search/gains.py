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


def gain_columns(
    measured: Arrays,
    transformers: Sequence[TransformerIdentity],
    steps: Sequence[Sequence[Sequence[int]]],
    columns: Sequence[int],
    last: int,
) -> list[int]:
    """The modes that gains of phases are measured with: the sparsest ones that err no more than one in the last phase.

    In one call, summed over the heads. A mode that suits late steps spoils the frames when early ones have it, and what
    a spoilt run errs says nothing of plans, which keep more there.

    Args:
        measured: Arrays of the first prompt.
        transformers: The pipeline's.
        steps: By `steps_in_phases`.
        columns: Numbers of the modes to choose from, densest last.
        last: Number of the mode of the last phase, one of them.

    Returns:
        The number of a mode for each phase; the densest where all err more, `last` where a phase has no steps.
    """
    weighed = layer_errors([measured], transformers, steps)
    errors = [np.sum([np.nansum(error[phase], (0, 1)) for error in weighed], 0) for phase in range(len(steps))]
    with_steps = [phase for phase, runs in enumerate(steps) if any(runs)]
    allowed = errors[with_steps[-1]][last]
    return [
        next((column for column in columns if errors[phase][column] <= allowed), columns[-1])
        if phase in with_steps
        else last
        for phase in range(len(steps))
    ]


def sparse_from(
    phase: int,
    ends: Sequence[float],
    modes: Sequence[str],
    transformers: Sequence[TransformerIdentity],
    orders: Sequence[OrderTables] | None = None,
) -> tuple[Phase, ...]:
    """Phases of a plan that is dense before one phase, and has one mode in all heads of each from there on.

    Args:
        phase: Number of the phase.
        ends: Ends of the phases.
        modes: Name of the mode of each phase.
        transformers: The pipeline's.
        orders: Token orders of the mode in each phase; `None` to settle them.
    """
    shape = [(one.num_layers, one.num_heads) for one in transformers]
    return tuple(
        _uniform(shape, end, DENSE)
        if place < phase
        else _uniform(shape, end, mode, None if orders is None else known_orders(orders[place]))
        for place, (end, mode) in enumerate(zip(ends, modes, strict=True))
    )


def phase_gains(
    mse: Sequence[float | None],
    measured: Sequence[Arrays],
    transformers: Sequence[TransformerIdentity],
    steps: Sequence[Sequence[Sequence[int]]],
    columns: Sequence[int],
) -> list[float]:
    """Error of the frames that a phase adds, over the summed errors of its heads.

    Args:
        mse: Mean squared error of the frames of the runs sparse from each phase on; `None` for phases without steps.
        measured: Arrays of the prompt of these runs.
        transformers: The pipeline's.
        steps: By `steps_in_phases`.
        columns: Number of the mode that each phase has in these runs.
    """
    weighed = layer_errors(measured, transformers, steps)
    gains, behind = [0.0] * len(mse), 0.0
    for phase in reversed(range(len(mse))):
        value = mse[phase]
        if value is None:
            continue
        caused = sum(float(np.nansum(error[phase, ..., columns[phase]])) for error in weighed)
        added = max(value - behind, LEAST_SHARE * value)
        # As for layers: without an error there is nothing to hold the result against.
        gains[phase] = added / caused if caused > 0 else 1.0
        behind = value
    return gains


def first_phase_gain(
    mse: float,
    measured: Sequence[Arrays],
    transformers: Sequence[TransformerIdentity],
    steps: Sequence[Sequence[Sequence[int]]],
    columns: Sequence[int],
) -> list[float]:
    """Factors on the gains of frames: 1, but for the first phase.

    What its errors do is not of first order: they turn the run to another course. So it is charged with what a run
    sparse in all phases errs more than the gains of the others say.

    Args:
        mse: Mean squared error of the frames of the run sparse in all phases.
        measured: Arrays of the prompt of this run.
        transformers: The pipeline's.
        steps: By `steps_in_phases`.
        columns: Number of the mode that each phase has in this run.
    """
    weighed = layer_errors(measured, transformers, steps)
    caused = [sum(float(np.nansum(one[phase, ..., column])) for one in weighed) for phase, column in enumerate(columns)]
    first = next(phase for phase, runs in enumerate(steps) if any(runs))
    added = max(mse - sum(caused[first + 1 :]), LEAST_SHARE * mse)
    gains = [1.0] * len(steps)
    # Never less than what gradients say, where the run is mild by chance.
    gains[first] = max(1.0, added / caused[first]) if caused[first] > 0 else 1.0
    return gains


def _uniform(shape: Sequence[tuple[int, int]], until: float, mode: str, orders: OrderTables | None = None) -> Phase:
    """A phase in which every head has one mode; its density and error are not known and noted as those of dense."""

    def table(value: Any) -> Any:
        return tuple(tuple((value,) * heads for _ in range(layers)) for layers, heads in shape)

    noted: dict[str, Any] = {"modes": table(mode), "density": table(1.0), "error": table(0.0), "orders": orders}
    return Phase(until=until, refresh_every=1, **noted)
