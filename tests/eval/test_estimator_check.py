"""Rank correlations and factors of the estimator's check."""

import numpy as np
import pytest

from fastdit_eval.estimator_check import correlations, factors


def rows(predicted, mse, phases=None):
    phases = [0] * len(mse) if phases is None else phases
    return [
        {"predicted": {"one": p}, "mse": m, "phase": phase} for p, m, phase in zip(predicted, mse, phases, strict=True)
    ]


def test_correlations_are_of_ranks():
    found = correlations(rows([1, 2, 3, 4], [1e-9, 1e-3, 2e-3, 5.0]))
    assert found["one"] == {"all": pytest.approx(1.0), "within_phases": pytest.approx(1.0)}
    assert correlations(rows([4, 3, 2, 1], [1, 2, 3, 4]))["one"]["all"] == pytest.approx(-1.0)


def test_phases_of_other_scale_count_only_over_all():
    found = correlations(rows([1, 2, 3, 1, 2, 3], [1e-6, 2e-6, 3e-6, 1.0, 2.0, 3.0], [0, 0, 0, 1, 1, 1]))["one"]
    assert found["within_phases"] == pytest.approx(1.0)
    assert found["all"] < 0.7


def test_too_few_rows_say_nothing():
    assert correlations(rows([1, 2], [1, 2])) == {}
    assert factors([]) == {}


def test_factors_are_in_decibels():
    found = factors(rows([1.0] * 11, np.geomspace(0.1, 10, 11)))
    assert found["median_db"] == pytest.approx(0.0, abs=1e-9)
    assert found["spread_db"] == pytest.approx(16.0)
