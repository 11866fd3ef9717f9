"""Plans for tests."""

import fastdit
from fastdit.plan import ALL_SPARSE, Phase, Plan, PlanGrid, TransformerIdentity


def sparse_mode(**settings):
    """Settings of an adaptive mode with tiles small enough for tiny grids."""
    return fastdit.AdaptiveConfig(schedule=ALL_SPARSE, min_tokens=0, q_tile=8, kv_tile=4, **settings).to_dict()


def cells(tables, value):
    """The tables as tuples, each cell replaced."""
    return tuple(tuple(tuple(map(value, row)) for row in table) for table in tables)


def make_plan(tables, identities=None, until=None, refresh_every=1, orders=None, **fields):
    """A plan with one table `[transformer][layer][head]` of modes, and one of orders if wanted, per phase."""
    orders = [None] * len(tables) if orders is None else orders
    if identities is None:
        identities = [
            TransformerIdentity(class_name="Some", config_hash="0" * 64, num_layers=len(table), num_heads=len(table[0]))
            for table in tables[0]
        ]
    until = until or [(number + 1) / len(tables) for number in range(len(tables))]
    modes = {"dense": "dense", "little": sparse_mode(density=0.1), "much": sparse_mode(density=0.5)}
    return Plan(
        **{
            "transformers": tuple(identities),
            "grid": PlanGrid(frames=3, height=4, width=6, text_length=0),
            "num_inference_steps": 4,
            "modes": modes,
            "phases": tuple(
                Phase(
                    until=end,
                    refresh_every=refresh_every,
                    modes=cells(table, str),
                    density=cells(table, lambda _: 0.5),
                    error=cells(table, lambda _: 0.01),
                    orders=None if pairs is None else cells(pairs, lambda pair: pair and tuple(pair)),
                )
                for end, table, pairs in zip(until, tables, orders, strict=True)
            ),
            "predicted_error": 0.01,
            "predicted_cost": 0.3,
            **fields,
        }
    )
