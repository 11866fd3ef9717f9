"""From measurements to the tables that are allocated from: error and cost of every mode of every head and phase."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdit.config import AttentionConfig, CachedConfig
from fastdit.key_orders import GivenOrders
from fastdit.plan import DENSE, Phase, TransformerIdentity
from fastdit.search.allocation import FloatArray, IntArray
from fastdit.search.cost import CostModel
from fastdit.search.ladder import Mode, numbered_orders
from fastdit.search.results import Arrays

BoolArray = NDArray[np.bool_]
OrderTables = tuple[tuple[GivenOrders, ...], ...]


@dataclass(frozen=True, eq=False)
class SearchTables:
    """One item per (phase, transformer, layer, head), one option per mode; dense is option 0.

    Args:
        error: Predicted mean squared error of the frames that a mode adds, `[items, modes]`; NaN where it was not
            measured.
        cost: Its share of the cost of a whole dense run, likewise.
        density: Share of scores it computes, likewise.
        recall: Its recall on sampled rows, likewise, the least of the measured prompts.
        shape: Layers and heads of each transformer.
        phases: Number of phases.
        orders: Numbers of the token orders that it was measured with, likewise, as `ModeFigures` has them; `None` for
            a plan without.
        refresh_every: Steps that masks are kept for, see `refresh_of`; what the costs were counted with.
    """

    error: FloatArray
    cost: FloatArray
    density: FloatArray
    recall: FloatArray
    shape: tuple[tuple[int, int], ...]
    phases: int
    orders: IntArray | None = None
    refresh_every: int = 1

    def phase_tables(self, choice: IntArray, modes: Mapping[str, Mode], ends: Sequence[float]) -> tuple[Phase, ...]:
        """The chosen modes as the phases of a plan.

        Args:
            choice: Mode of each item.
            modes: The ladder.
            ends: End of each phase.
        """
        items, names = np.arange(len(choice)), list(modes)
        columns: dict[str, Sequence[Any]] = {
            "modes": [names[number] for number in choice],
            "density": self.density[items, choice].tolist(),
            "error": self.error[items, choice].tolist(),
            "recall": self.recall[items, choice].tolist(),
        }
        if self.orders is not None:
            chosen = zip(choice, self.orders[items, choice].tolist(), strict=True)
            columns["orders"] = [numbered_orders(modes[names[mode]], [number])[0] for mode, number in chosen]
        phases: list[Phase] = []
        place = 0
        for end in ends:
            tables: dict[str, list[Any]] = {name: [] for name in columns}
            for layers, heads in self.shape:
                for name, column in columns.items():
                    rows = (column[place + row * heads : place + (row + 1) * heads] for row in range(layers))
                    tables[name].append(tuple(map(tuple, rows)))
                place += layers * heads
            parts: dict[str, Any] = {name: tuple(table) for name, table in tables.items()}
            parts["orders"] = known_orders(parts.get("orders", ()))
            phases.append(Phase(until=end, refresh_every=refresh_of(len(phases), self.refresh_every), **parts))
        return tuple(phases)


def refresh_of(phase: int, refresh_every: int) -> int:
    """Steps that masks are kept for in a phase: 1 in the first one, where no mask suits the next step.

    Args:
        phase: Number of the phase.
        refresh_every: Of all other phases.
    """
    return refresh_every if phase else 1


def order_tables(mode: Mode, numbers: Sequence[IntArray]) -> list[OrderTables]:
    """Orders of all heads in one mode, `[phase][transformer][layer][head]`.

    Args:
        mode: The mode of all heads.
        numbers: Of each transformer, `[phases, layers, heads]`, as `ModeFigures` has them.
    """
    return [
        tuple(tuple(numbered_orders(mode, row) for row in table.tolist()) for table in phase)
        for phase in zip(*numbers, strict=True)
    ]


def known_orders(tables: OrderTables) -> OrderTables | None:
    """Orders of the heads of a phase, `[transformer][layer][head]`; `None` if no head has one."""
    return tables if any(pair is not None for table in tables for row in table for pair in row) else None


def steps_of_phases(ends: Sequence[float], num_inference_steps: int) -> list[range]:
    """Steps of each phase, as `Plan.phase_at` counts them; may be empty where steps are few."""
    borders = [0, *(int(np.ceil(end * num_inference_steps - 1e-9)) for end in ends)]
    return [range(start, stop) for start, stop in itertools.pairwise(borders)]


def steps_in_phases(ends: Sequence[float], executed: BoolArray) -> list[list[list[int]]]:
    """Steps of each phase that each transformer runs in, `[phase][transformer]`; empty where it is idle.

    Args:
        ends: Ends of the phases.
        executed: Whether a transformer runs in a step, bool `[transformers, steps]`.
    """
    phases = steps_of_phases(ends, executed.shape[1])
    return [[[step for step in steps if runs[step]] for runs in executed] for steps in phases]


def measured_steps(steps: Sequence[Sequence[Sequence[int]]]) -> list[list[int | None]]:
    """The step in the middle of those that a transformer runs in, `[phase][transformer]`; `None` where it is idle.

    Args:
        steps: By `steps_in_phases`.
    """
    return [[run[len(run) // 2] if run else None for run in phase] for phase in steps]


def known_steps(steps: Sequence[Sequence[int | None]]) -> list[int]:
    """Those of `measured_steps` that are steps, phase by phase."""
    return [step for phase in steps for step in phase if step is not None]


def layer_errors(
    measured: Sequence[Arrays], transformers: Sequence[TransformerIdentity], steps: Sequence[Sequence[Sequence[int]]]
) -> list[FloatArray]:
    """Error of each mode weighed by the gains of its layer and of the mode, mean over prompts.

    One table for each transformer, `[phases, layers, heads, modes]`.

    Of two transformers that share a phase each counts by its share of the steps.

    Args:
        measured: Of each prompt; gains are taken from the first, those of frames if it has them.
        transformers: The pipeline's.
        steps: By `steps_in_phases`.
    """
    found = []
    for number in range(len(transformers)):
        error = _mean([arrays[f"error_{number}"] for arrays in measured])
        shares = [len(phase[number]) / max(1, sum(map(len, phase))) for phase in steps]
        if f"frame_gain_{number}" in measured[0]:
            # Sums over the steps that the transformer runs.
            found.append(error * measured[0][f"frame_gain_{number}"])
            continue
        weight = measured[0][f"gain_{number}"] * np.array(shares)[:, None]
        found.append(error * weight[:, :, None, None] * measured[0][f"joint_{number}"])
    return found


def build_tables(
    measured: Sequence[Arrays],
    phase_gains: Sequence[float],
    transformers: Sequence[TransformerIdentity],
    modes: Sequence[Mode],
    ends: Sequence[float],
    executed: BoolArray,
    cost_model: CostModel,
    refresh_every: int = 1,
) -> SearchTables:
    """Put the measurements together.

    `error = gain of the phase * of the layer * of the mode * squared error of the head`, where the gain of a phase
    makes the sum over its heads the error that a run with that phase sparse really had in its frames; errors of heads
    are taken as independent, so that they add.

    Args:
        measured: Arrays of each measured prompt; token orders are those of the first.
        phase_gains: Gain of each phase.
        transformers: The pipeline's.
        modes: The ladder, dense first.
        ends: Ends of the phases.
        executed: Whether a transformer runs in a step, bool `[transformers, steps]`.
        cost_model: What modes cost.
        refresh_every: Steps that masks are kept for, see `refresh_of`.
    """
    steps = steps_in_phases(ends, executed)
    weighed = layer_errors(measured, transformers, steps)
    errors: list[FloatArray] = []
    costs: list[FloatArray] = []
    densities: list[FloatArray] = []
    recalls: list[FloatArray] = []
    orders: list[IntArray] = []
    for phase, gain in enumerate(phase_gains):
        for number in range(len(transformers)):
            density = _mean([arrays[f"density_{number}"][phase] for arrays in measured])
            cost = np.empty_like(density)
            for column, mode in enumerate(modes):
                price = _price(cost_model, mode, len(steps[phase][number]), refresh_of(phase, refresh_every))
                cost[..., column] = [[price(value) for value in row] for row in density[..., column]]
            error = gain * weighed[number][phase]
            # Where a transformer does not run in a phase only dense can be chosen, and costs nothing.
            recall = np.fmin.reduce([arrays[f"recall_{number}"][phase] for arrays in measured])
            error[..., 0], density[..., 0], recall[..., 0] = 0.0, 1.0, 1.0
            errors.append(error.reshape(-1, len(modes)))
            costs.append((cost * len(steps[phase][number])).reshape(-1, len(modes)))
            densities.append(density.reshape(-1, len(modes)))
            recalls.append(recall.reshape(-1, len(modes)))
            orders.append(measured[0][f"orders_{number}"][phase].reshape(-1, len(modes)))
    error, cost = np.concatenate(errors), np.concatenate(costs)
    dense_total = cost[:, 0].sum()
    shape = tuple((one.num_layers, one.num_heads) for one in transformers)
    density, recall = np.concatenate(densities), np.concatenate(recalls)
    found = np.concatenate(orders)
    return SearchTables(error, cost / dense_total, density, recall, shape, len(ends), found, refresh_every)


def _mean(tables: Sequence[FloatArray]) -> FloatArray:
    """Mean over prompts, of those that were measured there; NaN where none was."""
    known = np.isfinite(tables)
    mean: FloatArray = np.where(known, tables, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return mean


def _price(cost_model: CostModel, mode: Mode, steps: int, refresh_every: int) -> Callable[[float], float]:
    """Cost of one head in one step, by its density.

    Args:
        cost_model: What modes cost.
        mode: Which.
        steps: Steps of the phase.
        refresh_every: Steps that masks of other modes than cached ones are kept for.
    """
    if not isinstance(mode, AttentionConfig):
        return lambda density: cost_model.cost(density, DENSE)
    kept, method = refresh_every, mode.method
    if isinstance(mode, CachedConfig):
        kept, method = mode.refresh_every, mode.source.method
    builds = max(1, math.ceil(steps / max(1, min(steps, kept))))
    return lambda density: cost_model.cost(density, method, max(1, steps) / builds)
