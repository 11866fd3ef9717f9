"""What a search costs, counted in dense runs of the pipeline by FLOPs; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastdit.search.frame_gains import followed_steps
from fastdit.search.runs import MEASURED_WHOLLY, first_part
from fastdit.search.settings import DEFAULT_PHASES
from fastdit.search.tables import known_steps, measured_steps, steps_of_phases

# What a promise takes on average where prompts differ by 4 dB (tests/fastdit/test_search_rounds.py): a first plan that
# is verified at once, and a correction.
TRIED, VERIFIED = 2, 2
# FLOPs of gradients of a call's inputs over those of the call: of linear layers with frozen weights, of attention.
LINEAR_GRADIENTS, ATTENTION_GRADIENTS = 1.0, 2.5
# Modes whose errors meet gradients.
FOLLOWED_MODES = 2


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """A dense run.

    Args:
        steps: Denoising steps.
        calls_per_step: Transformer calls of a step, 2 for guidance in separate calls.
        layers: Self-attention layers.
        attention_share: Share of self-attention in the FLOPs of a transformer call.
    """

    steps: int
    calls_per_step: int
    layers: int
    attention_share: float

    def sparse_run(self, density: float) -> float:
        """FLOPs of a run with attention at a density, over those of a dense one."""
        return 1 - self.attention_share * (1 - density)


def count_search(
    shape: RunShape,
    *,
    measured: int,
    verified: int,
    density: float,
    gain_density: float = 0.2,
    modes: int = 8,
    screened: int = 2,
    phases: Sequence[float] = DEFAULT_PHASES,
    gains: Literal["frames", "calls"] = "frames",
) -> dict[str, float]:
    """Dense runs that each part of a search is worth.

    Args:
        shape: Of a dense run.
        measured: Prompts to measure on.
        verified: Prompts to verify on.
        density: Of the plans that are tried, over the whole run.
        gain_density: Of the mode that gains are measured with.
        modes: Sparse modes of the ladder.
        screened: Prompts that plans are tried on.
        phases: Ends of the phases.
        gains: How they are measured.
    """
    ranges = [steps for steps in steps_of_phases(phases, shape.steps) if steps]
    middle = measured_steps([[list(steps)] for steps in ranges])
    last, early = known_steps(middle), known_steps(first_part(middle, shape.steps))
    wholly = min(measured, MEASURED_WHOLLY)
    tried = TRIED * min(screened, verified) + VERIFIED * max(0, verified - screened)
    return {
        "dense runs": verified + 1.0,
        "further measured prompts": (wholly - 1) * (last[-1] + 1) / shape.steps
        + (measured - wholly) * (early[-1] + 1) / shape.steps,
        **_price_of_gains(shape, ranges, gain_density, modes, gains),
        "noise floor": 1.0,
        "plans tried and verified": tried * shape.sparse_run(density),
    }


def _price_of_gains(
    shape: RunShape, ranges: Sequence[range], gain_density: float, modes: int, gains: str
) -> dict[str, float]:
    sparse = shape.sparse_run(gain_density)
    if gains == "frames":
        share = shape.attention_share
        followed = sum(len(followed_steps(list(steps))) for steps in ranges) / shape.steps
        return {
            # Every call is computed again before.
            "gradients of the frames": 1 + LINEAR_GRADIENTS * (1 - share) + ATTENTION_GRADIENTS * share,
            "errors that meet them": FOLLOWED_MODES * followed * share * gain_density,
            "gain of the first phase": sparse,
        }
    return {
        "gains of layers": len(ranges) * shape.layers / (shape.steps * shape.calls_per_step),
        "gains of modes": modes * sparse / (shape.steps * shape.calls_per_step),
        "gains of phases": sum((1 - steps.start / shape.steps) * sparse for steps in ranges),
    }


def attention_share(tokens: int, width: int, feed_forward: int, text: int = 512) -> float:
    """Share of self-attention in the FLOPs of a layer of Wan: self- and cross-attention, then a feed-forward part.

    Args:
        tokens: Video tokens.
        width: Of the model.
        feed_forward: Width of the feed-forward part.
        text: Text tokens of the cross-attention.
    """
    attention = 4 * tokens**2 * width
    # Projections: four of the self-attention, two of the video and two of the text in the cross-attention.
    linear = 2 * (6 * tokens + 2 * text) * width**2 + 4 * tokens * width * feed_forward
    return attention / (attention + linear + 4 * tokens * text * width)
