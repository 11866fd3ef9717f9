"""What a measured prompt is kept as: arrays by transformer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdit.search.measure import ModeProbe
from fastdit.search.results import Arrays


def measured_arrays(probe: ModeProbe, steps: list[list[int | None]]) -> Arrays:
    """What a probe found as arrays `[phases, layers, heads, modes]` per transformer.

    Where nothing was measured they are NaN, numbers of orders -1.
    """
    assert probe.grid is not None, "a run that returned has made attention calls"
    grid = probe.grid
    arrays: Arrays = {
        "grid": np.array([grid.frames, grid.height, grid.width, grid.text_length]),
        "identities": np.array([identity.model_dump_json() for identity in probe.identities]),
    }
    for number, identity in enumerate(probe.identities):
        shape = (len(steps), identity.num_layers, identity.num_heads, len(probe.modes))
        error, density, recall, relative = (np.full(shape, np.nan) for _ in range(4))
        gain, orders = np.full(shape[:2], np.nan), np.full(shape, -1, np.int8)
        for phase in range(len(steps)):
            step = steps[phase][number]
            for layer in range(identity.num_layers):
                place = (number, layer, -1 if step is None else step)
                if place in probe.errors:
                    error[phase, layer], density[phase, layer] = probe.errors[place], probe.densities[place]
                    recall[phase, layer], relative[phase, layer] = probe.recalls[place], probe.relatives[place]
                    orders[phase, layer] = probe.orders[place]
                gain[phase, layer] = probe.gains.get(place, np.nan)
        arrays |= {f"error_{number}": error, f"density_{number}": density, f"gain_{number}": gain}
        joint = [found for (place, _), found in probe.joint.items() if place == number]
        arrays[f"joint_{number}"] = np.mean(joint, axis=0) if joint else np.ones(len(probe.modes))
        arrays |= {f"recall_{number}": recall, f"relative_{number}": relative, f"orders_{number}": orders}
    return arrays


def orders_of(measured: Arrays) -> list[Any]:
    """Numbers of the orders of all heads, `[phases, layers, heads, modes]` per transformer."""
    return [measured[f"orders_{number}"] for number in range(len(measured["identities"]))]
