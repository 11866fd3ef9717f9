"""Numbers of many prompts as one row: mean, median, the worst, and how sure the mean is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000


def summarize_values(values: Sequence[float], higher_is_better: bool = True) -> dict[str, Any]:
    """Mean, median, `p5_worst` (the value that 5 % of the prompts are worse than) and `ci95` of the mean.

    Args:
        values: One per prompt.
        higher_is_better: Direction, for `p5_worst`.

    Returns:
        The numbers; `ci95` is the percentile bootstrap over prompts, `None` for a single one.
    """
    data = np.asarray(values, dtype=np.float64)
    interval = None
    if len(data) > 1:
        # A generator of its own with a fixed seed: measuring again gives the same interval.
        drawn = bootstrap(
            (data,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0), batch=100
        )
        interval = [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)]
    return {
        "mean": float(data.mean()),
        "median": float(np.median(data)),
        "p5_worst": float(np.percentile(data, 5 if higher_is_better else 95)),
        "ci95": interval,
        "num_prompts": len(data),
    }
