"""Errors of heads at several densities, drawn towards their common curve."""

import numpy as np
import pytest

from fastdit.config import AdaptiveConfig, CachedConfig, PyramidConfig, StaticConfig
from fastdit.plan import ALL_SPARSE
from fastdit.search.allocation import allocate, total
from fastdit.search.error_curves import with_drawn_curves

DENSITIES = (0.06, 0.12, 0.2, 0.35, 0.5, 0.7)
GIVEN = {"schedule": ALL_SPARSE, "min_tokens": 0}
PYRAMIDS = [PyramidConfig(density=density, **GIVEN) for density in DENSITIES]
LADDER = ["dense", *PYRAMIDS]


def curves(rng, phases=2, layers=6, heads=4, spread=1.5):
    """Errors that are a level of each head times a curve, dense first."""
    level = spread * rng.normal(size=(phases, layers, heads, 1))
    curve = -np.array([4.0, 5.0, 6.0, 7.3, 8.7, 10.5]) - np.arange(phases)[:, None, None, None]
    return np.concatenate([np.zeros((phases, layers, heads, 1)), np.exp(level + curve)], 3)


def drawn(error, ladder=LADDER, **settings):
    (found,) = with_drawn_curves([{"error_0": error}], ladder, **settings)
    return found["error_0"]


def test_heads_that_share_a_curve_stay_as_they_are():
    error = curves(np.random.default_rng(0))
    (found,) = with_drawn_curves([{"error_0": error, "density_0": error + 1}], LADDER)
    assert np.allclose(found["error_0"], error, rtol=1e-12)
    assert np.array_equal(found["density_0"], error + 1)


def test_what_sets_a_head_apart_is_halved():
    error = curves(np.random.default_rng(0))
    error[0, 2, 1, 3] *= np.exp(2.0)
    found, given = (np.log(x[..., 1:]) for x in (drawn(error), error))
    # The head's level takes a sixth of it, and the curve one 24th of the rest.
    rest = 2.0 * (1 - 1 / 6) * (1 - 1 / 24)
    assert np.isclose(given[0, 2, 1, 2] - found[0, 2, 1, 2], rest / 2)
    assert np.allclose(found[1], given[1])


def test_all_of_it_believed_is_what_was_measured():
    rng = np.random.default_rng(1)
    error = curves(rng) * np.exp(rng.normal(size=(2, 6, 4, 7)))
    assert np.allclose(drawn(error, believed=1.0), error, rtol=1e-12)


def test_what_has_no_curve_stays_as_it_is():
    rng = np.random.default_rng(2)
    kept = [CachedConfig(source=mode, refresh_every=9, min_recall=None) for mode in PYRAMIDS[:2]]
    others = [StaticConfig(pattern="skip", **GIVEN), AdaptiveConfig(density=0.5, **GIVEN), *kept]
    error = np.exp(rng.normal(size=(2, 6, 4, 7 + len(others))))
    error[..., 0] = 0.0
    error[0, 1, 2, 3], error[1, 3] = 0.0, np.nan
    found = drawn(error, [*LADDER, *others])
    same = np.isclose(found, error, rtol=0, atol=0, equal_nan=True)
    assert same[..., 0].all()
    assert same[..., 7:].all()
    assert same[0, 1, 2, 3]
    assert np.isnan(found[1, 3]).all()
    changed = np.isfinite(error) & (error > 0)
    changed[..., 7:] = False
    assert not same[changed].any()


def test_what_several_prompts_say_is_believed():
    rng = np.random.default_rng(3)
    first, second = (np.exp(rng.normal(size=(2, 6, 4, 7))) for _ in range(2))
    second[1] = np.nan
    given = [{"error_0": error} for error in (first, second)]
    one, other = (arrays["error_0"] for arrays in with_drawn_curves(given, LADDER))
    assert np.array_equal(one[0], first[0])
    assert not np.isclose(one[1, ..., 1:], first[1, ..., 1:]).all()
    assert other is second


@pytest.mark.parametrize("noise", [0.8, 1.2])
def test_allocations_from_noisy_errors_err_less_for_it(noise):
    """What is measured too low is picked: from drawn errors less often."""
    truly = {0.5: 0.0, 1.0: 0.0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        exact = curves(rng, phases=1)
        seen = exact * np.exp(noise * rng.normal(size=exact.shape))
        cost = np.tile([1.0, *DENSITIES], (24, 1)) / 24
        for believed in truly:
            errors = drawn(seen, believed=believed).reshape(24, 7)
            truly[believed] += np.log(total(exact.reshape(24, 7), allocate(errors, cost, max_cost=0.2)))
    assert truly[0.5] < truly[1.0] - 20 * 0.05
