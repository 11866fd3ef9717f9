"""Expected gain on a named card by a roofline: published rates of dense kernels, and what a sparse one may reach.

Nothing here was measured on a GPU by this project. Dense rates are published ones; what a Triton kernel reaches over
the tiles that it keeps is an estimate from published block-sparse kernels. A row of few tiles pays a start-up of about
two tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastdit.errors import ConfigError
from fastdit.search.cost import SELECTION_SHARES, CostModel

# Start-up of a query tile, in key tiles of 128; the anchors are of rows with about 26 tiles.
STARTUP_TILES, ANCHOR_TILES = 2.0, 26.0


@dataclass(frozen=True, kw_only=True)
class Card:
    """Rates in TFLOP/s of bf16 (`cpu`: fp32, one thread), each for `head_dim` up to 64 and above.

    Args:
        dense: Best dense attention.
        sparse: A Triton block-sparse kernel, over the tiles it keeps (`cpu`: gathered tiles in torch).
        matmul: Matrix products.
        source: Where the figures come from.
    """

    dense: tuple[float, float]
    sparse: tuple[float, float]
    matmul: float
    source: str


CARDS = {
    "h100": Card(
        dense=(490, 650),
        sparse=(355, 445),
        matmul=798,
        source="dense and matmul published (FlashAttention-3, cuDNN, cuBLAS); sparse estimated",
    ),
    "h200": Card(
        dense=(490, 695),
        sparse=(355, 460),
        matmul=780,
        source="dense at head_dim 128 and matmul published (cuDNN 9.19, cuBLAS), at 64 that of the H100; sparse "
        "estimated",
    ),
    "a100": Card(
        dense=(220, 220),
        sparse=(165, 175),
        matmul=250,
        source="dense published (FlashAttention-2, head_dim 128); sparse estimated; matmul assumed, 80 % of the peak",
    ),
    "4090": Card(
        dense=(164, 164),
        sparse=(132, 140),
        matmul=150,
        source="dense published (FlashAttention-2, head_dim 128); sparse estimated; matmul assumed, 90 % of the peak",
    ),
    "cpu": Card(
        dense=(0.073, 0.073),
        sparse=(0.055, 0.055),
        matmul=0.073,
        source="dense and sparse measured on one thread of an AMD EPYC (AVX2) with 128 x 128 tiles at 4,096 to 16,384 "
        "tokens; matmul assumed to be as fast as attention",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Times as fast as dense, expected.

    Args:
        attention: Self-attention of a sparse step, selection included.
        step: A transformer call of a sparse step; `None` if the rate of matrix products is unknown.
        run: All transformer calls of a run, dense steps included; likewise. Text encoder and VAE are left out.
    """

    attention: float
    step: float | None
    run: float | None


def find_card(name: str) -> Card:
    """A card of the table.

    Raises:
        ConfigError: It is not there.
    """
    if name not in CARDS:
        raise ConfigError(f"card={name!r}: accepted are {', '.join(CARDS)}")
    return CARDS[name]


def recognise_card(device_name: str | None) -> str | None:
    """Name of the card in the table that a device is; a machine without one is `"cpu"`."""
    if device_name is None:
        return "cpu"
    found = [name for name in CARDS if name in device_name.lower()]
    return found[0] if found else None


def roofline(card: Card, head_dim: int, kept_tiles: float) -> CostModel:
    """The cost model of a card.

    Args:
        card: Its rates.
        head_dim: Width of a head.
        kept_tiles: Key tiles of 128 tokens that a query tile keeps, mean.
    """
    column = int(head_dim > 64)
    efficiency = card.sparse[column] / card.dense[column]
    anchor = ANCHOR_TILES / (ANCHOR_TILES + STARTUP_TILES)
    startup = min(1.0, kept_tiles / (kept_tiles + STARTUP_TILES) / anchor)
    return CostModel(efficiency=efficiency * startup, selection=SELECTION_SHARES, source=card.source)


def attention_cost(model: CostModel, methods: dict[str, float], density: float, refresh_every: int = 1) -> float:
    """Time of the attention of a sparse step over that of dense attention.

    Args:
        model: What modes cost.
        methods: Share of the scores that each method, or `"dense"`, answers for.
        density: Mean density of what is not dense.
        refresh_every: Steps that a mask is used for, which share its selection.
    """
    selection = {name: share / refresh_every for name, share in model.selection.items()}
    shared = replace(model, selection=selection)
    return sum(share * shared.cost(density, name) for name, share in methods.items())


def expected_gain(
    cost: float,
    attention_flops: float,
    other_flops: float,
    sparse_share: float,
    card: Card | None,
    head_dim: int,
) -> Gain:
    """The gain at a cost of the attention of sparse steps.

    Args:
        cost: From `attention_cost`.
        attention_flops: Of a dense call.
        other_flops: Of its other matrix products.
        sparse_share: Share of the steps that are sparse.
        card: Rates, `None` if unknown.
        head_dim: Width of a head.
    """
    if card is None:
        return Gain(attention=1 / cost, step=None, run=None)
    attention = attention_flops / card.dense[int(head_dim > 64)]
    other = other_flops / card.matmul
    sparse = cost * attention + other
    dense = attention + other
    return Gain(
        attention=1 / cost,
        step=dense / sparse,
        run=dense / (sparse_share * sparse + (1 - sparse_share) * dense),
    )
