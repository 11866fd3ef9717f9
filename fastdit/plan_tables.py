"""Checks of the tables of a plan, `[transformer][layer][head]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fastdit.orders import OrderName

# Orders of queries and of keys.
PlanOrders = tuple[OrderName, Literal[OrderName, "score"]]


def check_shape(path: str, tables: Sequence[Sequence[Sequence[object]]], shape: Sequence[tuple[int, int]]) -> None:
    """Refuse tables of another size.

    Args:
        path: What to call them.
        tables: One per transformer.
        shape: Layers and heads of each transformer.
    """
    if len(tables) != len(shape):
        raise ValueError(f"{path}: {len(tables)} tables: accepted is one for each of {len(shape)} transformers")
    for number, (table, (layers, heads)) in enumerate(zip(tables, shape, strict=True)):
        if len(table) != layers or any(len(row) != heads for row in table):
            raise ValueError(f"{path}.{number}: accepted are {layers} rows of {heads} heads")


def check_orders(
    path: str,
    orders: Sequence[Sequence[Sequence[PlanOrders | None]]],
    modes: Sequence[Sequence[Sequence[str]]],
    accepted: Mapping[str, Sequence[tuple[str, str]]],
) -> None:
    """Refuse orders that the mode of a head does not have.

    Args:
        path: What to call them.
        orders: Of each head; `None` is always accepted.
        modes: Name of the mode of each head, in tables of the same size.
        accepted: Pairs of orders that each mode has.
    """
    for number, (table, names) in enumerate(zip(orders, modes, strict=True)):
        for layer, (row, row_names) in enumerate(zip(table, names, strict=True)):
            for head, (pair, name) in enumerate(zip(row, row_names, strict=True)):
                if pair is not None and pair not in accepted[name]:
                    known = ", ".join(["null", *(str(list(one)) for one in accepted[name])])
                    raise ValueError(
                        f"{path}.{number}.{layer}.{head}: {list(pair)} with mode {name!r}: accepted is {known}"
                    )
