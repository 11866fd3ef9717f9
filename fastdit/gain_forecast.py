"""Whether a method will pay at a geometry, before anything runs: the gain expected on a card, and a plain warning."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from fastdit.config import AttentionConfig, CachedConfig
from fastdit.forecast import RunForecast
from fastdit.grid import VideoGrid
from fastdit.plan import DENSE
from fastdit.search.cards import Card, Gain, attention_cost, expected_gain, find_card, roofline
from fastdit.search.cost import SELECTION_SHARES, CostModel

Ends = tuple[float, float]
# Shares of `SELECTION_SHARES` were measured at this length; shorter sequences pay more of dense attention's time, by a
# power of the length: that of the pyramid method, the slowest, in `fastdit bench growth` on a CPU (docs/bench.md).
SELECTION_TOKENS, SELECTION_DECAY = 8640, 0.46
# Moving queries, keys, values and output between the model's order and tile order: the tokens at which it takes as long
# as dense attention. Measured on a CPU with an order per head; for cards estimated, as eight passes over `[S, H, D]` in
# bf16 at half of the memory bandwidth, beside dense attention at its published rate.
MOVING_TOKENS = {"cpu": 260.0, "h100": 1550.0, "h200": 1160.0, "a100": 880.0, "4090": 1300.0}


@dataclass(frozen=True, kw_only=True)
class GainForecast:
    """Times as fast as dense, expected: least and largest, which differ where the tensors decide the density.

    Args:
        attention: Self-attention of a sparse step; `None` if the card is unknown.
        step: A transformer call of a sparse step; `None` also if the rate of matrix products is unknown.
        run: All transformer calls of a run, dense steps included; likewise.
        selection: Share of dense attention's time that selecting takes.
        moving: Share of it that moving tokens into tile order and back takes; 0 if unknown.
        source: Where the rates come from.
        efficiency: Speed of the sparse kernel per score, over that of the dense one.
    """

    attention: Ends | None
    step: Ends | None
    run: Ends | None
    selection: float
    moving: float
    source: str | None
    efficiency: float | None

    def warning(self) -> str | None:
        """What to tell who asks for this method; `None` where attention is expected to be faster than dense."""
        if self.attention is None:
            return "the gain is unknown: this GPU is not in the table of cards"
        low, high = self.attention
        if high <= 1:
            return f"expected to be slower than dense: attention {high:.2f} x"
        if low <= 1:
            return f"may be slower than dense: attention {low:.2f} to {high:.2f} x, as the tensors decide"
        return None


def forecast_gain(
    config: AttentionConfig,
    grid: VideoGrid,
    forecast: RunForecast,
    head_dim: int,
    flops: tuple[float, float],
    card_name: str | None,
    bench: Path | None = None,
) -> GainForecast:
    """The expected gain.

    Args:
        config: Method and settings.
        grid: Geometry.
        forecast: Densities of the run.
        head_dim: Width of a head.
        flops: Of a dense transformer call: of self-attention, and of its other matrix products.
        card_name: A name of `search.cards.CARDS`; `None` if the card is not known.
        bench: Timings of `fastdit bench kernels`, to take the kernel's efficiency from.
    """
    card = None if card_name is None else find_card(card_name)
    refresh_every = config.refresh_every if isinstance(config, CachedConfig) else 1
    steps = forecast.num_inference_steps
    shares = [(forecast.run.high, forecast.sparse_step.high), (forecast.run.low, forecast.sparse_step.low)]
    shares_of_selection = selection_shares(grid.length)
    sparse_heads = sum(share for name, share in forecast.methods.items() if name != DENSE)
    moving = 0.0
    gains: list[Gain] = []
    model: CostModel | None = None
    for high in (False, True):
        density = forecast.sparse_call.high if high else forecast.sparse_call.low
        model = _cost_model(card, bench, head_dim, density * grid.length / 128)
        if model is None:
            break
        moving = _moving_tokens(card_name, bench) / grid.length
        model = dataclasses.replace(model, selection=shares_of_selection)
        cost = attention_cost(model, forecast.methods, density, refresh_every) + moving * sparse_heads
        run, step = shares[0] if high else shares[1]
        # Dense steps, and refreshes that are dense passes, are what parts the run from its sparse steps.
        sparse_share = (1 - run) / (1 - step) if step < 1 else (steps - forecast.dense_steps) / steps
        gains.append(expected_gain(cost, *flops, sparse_share, card, head_dim))
    selection = sum(share * shares_of_selection.get(name, 0.0) for name, share in forecast.methods.items())
    return GainForecast(
        attention=_ends([gain.attention for gain in gains]),
        step=_ends([gain.step for gain in gains]),
        run=_ends([gain.run for gain in gains]),
        selection=selection / refresh_every,
        moving=moving,
        source=None if model is None else model.source,
        efficiency=None if model is None else model.efficiency,
    )


def selection_shares(tokens: int) -> dict[str, float]:
    """Share of dense attention's time that each method takes to select, at a length."""
    grown = (SELECTION_TOKENS / tokens) ** SELECTION_DECAY
    return {name: min(1.0, share * grown) for name, share in SELECTION_SHARES.items()}


def _moving_tokens(card_name: str | None, bench: Path | None) -> float:
    """As `MOVING_TOKENS`; a bench of kernels has measured it."""
    if bench is None:
        return MOVING_TOKENS.get(card_name or "", 0.0)
    cases = json.loads(bench.read_text())["cases"]
    try:
        return statistics.median(
            float(case["gather_seconds"] / case["dense_seconds"][case["best_dense"]] * case["shape"][2])
            for case in cases
        )
    except KeyError:
        return 0.0


def _cost_model(card: Card | None, bench: Path | None, head_dim: int, kept_tiles: float) -> CostModel | None:
    if bench is not None:
        return CostModel.from_bench(bench)
    return None if card is None else roofline(card, head_dim, kept_tiles)


def _ends(values: list[float] | list[float | None]) -> Ends | None:
    """Least and largest gain; `None` if it is unknown."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
