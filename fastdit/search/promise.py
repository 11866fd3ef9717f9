"""What a promise of quality means for the figures of a few prompts: by how many dB they keep it."""

from __future__ import annotations

import math

import numpy as np

from fastdit.errors import ConfigError
from fastdit.search.results import Arrays
from fastdit.search.settings import SearchSettings

# Nine of ten prompts are to be no more than this under the promise, in dB.
TAIL_ALLOWANCE = 1.0
NINE_OF_TEN = 0.9
# Runs from which a deviation is estimated.
LEAST_RUNS = 3
# Of the first plan where SSIM is promised, in dB of PSNR.
DEFAULT_AIM = 30.0
# By how much prompts differ as a rule, in dB, and how many runs that counts as beside those of a search: four prompts
# that happen to be alike said 2.2 dB where thirty others had 5.9 (bundled model), and the promise was broken.
USUAL_DEVIATION = 4.0
USUAL_RUNS = 4
# dB of real error for each dB of the predicted one, where it is smaller than what gains were measured at: .6 for plans
# of the bundled model from 33 to 42 dB. Half of that is left to the window of a last plan.
USUAL_SLOPE = 0.75
# Five plans of the bundled model whose gains are those of frames, 32 to 43 dB predicted: the PSNR at which they are as
# good as predicted, real differences for those predicted (.4 dB besides), and the most that an aim is shifted for it.
RIGHT_AT, FRAME_SLOPE, MOST_SHIFT = 41.0, 0.83, 3.0


def surplus_of(settings: SearchSettings, found: Arrays, *, tail: bool) -> float:
    """Quality over the promise with its margin, in dB; negative where it is not kept, 0 for budgets.

    `min_psnr` is a promise of the mean, and that nine of ten prompts reach `min_psnr - 1`, both of prompts that were
    not run: the lesser surplus counts. With the mean `m` of `n` runs and `s`, their standard deviation pooled with the
    usual one,

        mean:  m - t s / sqrt(n) - min_psnr - margin,    tail:  m - k s - (min_psnr - 1)

    where `t` is Student's quantile of the confidence and `k` the factor of the one-sided tolerance limit of a normal
    distribution, a quantile of the noncentral t distribution (NIST/SEMATECH e-Handbook, 7.2.6.3). For `min_ssim` dB
    are those of the distance to 1, so that one rule moves the bound for both promises.

    Args:
        settings: The search.
        found: `psnr` and `ssim` of each run.
        tail: Whether to allow for prompts that were not run; needs three runs or more.

    Raises:
        ConfigError: SSIM is promised, and the frames are too small for it.
    """
    if settings.min_psnr is not None:
        mean, number = float(found["psnr"].mean()), len(found["psnr"])
        if not tail or number < LEAST_RUNS:
            return mean - settings.min_psnr - settings.margin
        squares = float(found["psnr"].var(ddof=1)) * (number - 1) + USUAL_RUNS * USUAL_DEVIATION**2
        return mean - _needed_mean(settings, settings.min_psnr, number, math.sqrt(squares / _freedom(number)))
    if settings.min_ssim is not None:
        if np.isnan(found["ssim"]).any():
            raise ConfigError("min_ssim: the frames are smaller than the window of 11 pixels; use min_psnr")
        allowed = (1 - settings.min_ssim) * (1 - min(settings.margin / 10, 0.5))
        return 10 * math.log10(max(allowed, 1e-12) / max(1 - float(found["ssim"].mean()), 1e-12))
    return 0.0


def first_aim(settings: SearchSettings, window: float, measured: float = math.inf) -> float:
    """PSNR of the predicted error that the first plan aims at.

    What a promise takes where prompts differ as they do as a rule, and half of the window, or a quarter where gains are
    those of frames, which predict plans more closely. Errors are predicted as means over prompts, and the mean PSNR of
    prompts that differ by `s` dB lies `ln(10) / 20 s^2` dB above the PSNR of their mean error (normally distributed
    dB). Above the PSNR of the run that gains were measured with, real errors fall slower than predicted ones
    (`USUAL_SLOPE`). Those predicted by gradients are right at one PSNR, and differ by less from there than predicted
    (`RIGHT_AT`, `FRAME_SLOPE`): large errors saturate.

    Args:
        settings: The search.
        window: Surplus in dB that ends a search.
        measured: PSNR of the run that is sparse in all phases; of no use where gains are those of frames.
    """
    number = len(settings.verified_runs)
    if settings.min_psnr is None or number < LEAST_RUNS:
        aim = (settings.min_psnr or DEFAULT_AIM) + settings.margin + window / 2
    else:
        above = math.log(10) / 20 * USUAL_DEVIATION**2
        share = 4 if settings.gains == "frames" else 2
        aim = _needed_mean(settings, settings.min_psnr, number, USUAL_DEVIATION) + window / share - above
    if settings.gains == "frames":
        return aim + min(MOST_SHIFT, max(-MOST_SHIFT, (aim - RIGHT_AT) * (1 / FRAME_SLOPE - 1)))
    return aim + max(0.0, aim - measured) * (1 / USUAL_SLOPE - 1)


def _needed_mean(settings: SearchSettings, promise: float, number: int, deviation: float) -> float:
    """Mean PSNR of `number` runs that keeps `promise`, of the mean and of nine in ten; see `surplus_of`."""
    doubt, factor = _limit_factors(number, settings.confidence)
    return max(promise + settings.margin + doubt * deviation, promise - TAIL_ALLOWANCE + factor * deviation)


def _freedom(number: int) -> int:
    """Degrees of freedom of the pooled deviation of `number` runs."""
    return number - 1 + USUAL_RUNS


def _limit_factors(number: int, confidence: float) -> tuple[float, float]:
    """Pooled deviations by which the mean, and nine of ten prompts, may lie under what so many runs show."""
    # Loaded when a promise is judged: SciPy's statistics take a second to import.
    from scipy.stats import nct, norm, t

    root, freedom = math.sqrt(number), _freedom(number)
    mean, tail = t.ppf(confidence, freedom), nct.ppf(confidence, freedom, norm.ppf(NINE_OF_TEN) * root)
    return float(mean) / root, float(tail) / root


def measured_quality(found: Arrays) -> dict[str, float]:
    """What a plan notes of its verification."""
    psnr = found["psnr"]
    measured = {
        "psnr": float(psnr.mean()),
        "worst_psnr": float(psnr.min()),
        "density": float(found["density"].mean()),
        "verified_runs": float(len(psnr)),
    }
    if len(psnr) > 1:
        measured["psnr_deviation"] = float(psnr.std(ddof=1))
    if not np.isnan(found["ssim"]).any():
        measured["ssim"] = float(found["ssim"].mean())
    return measured
