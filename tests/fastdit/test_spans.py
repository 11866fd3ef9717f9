"""Named parts of a sparse attention call."""

import time

import pytest
import torch

import fastdit
from fastdit.spans import SPANS, SpanTimer, now, span


def test_a_span_inside_another_counts_for_itself_alone(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr("fastdit.spans.now", lambda: next(clock))
    with SpanTimer() as timer:
        with span("selection"), span("gather"):
            pass
        with span("gather"):
            pass
    # Selection from 0 to 6 without 1 to 4; gather 1 to 4 and 10 to 15.
    assert timer.seconds == {"gather": 8.0, "selection": 3.0}
    with span("gather"):
        pass
    assert timer.seconds == {"gather": 8.0, "selection": 3.0}


def test_an_error_leaves_no_trace():
    timer = SpanTimer()
    with pytest.raises(KeyError), timer, span("kernel"):
        raise KeyError
    with span("gather"):
        pass
    assert set(timer.seconds) == {"kernel"}


@pytest.mark.parametrize(
    "config",
    [
        fastdit.AdaptiveConfig(density=0.5, min_tokens=0),
        fastdit.PyramidConfig(density=0.5, min_tokens=0),
        fastdit.CachedConfig(source=fastdit.AdaptiveConfig(density=0.5, min_tokens=0), mass="exact"),
    ],
)
def test_every_method_has_all_parts_and_they_fit_into_the_call(config, rng):
    query, key, value = (torch.randn(1, 2, 4 * 8 * 8, 32, generator=rng) for _ in range(3))
    with SpanTimer() as timer:
        start = time.perf_counter()
        fastdit.sparse_attention(query, key, value, config, grid=(4, 8, 8))
        whole = time.perf_counter() - start
    assert set(timer.seconds) == set(SPANS)
    assert min(timer.seconds.values()) > 0
    assert sum(timer.seconds.values()) <= whole


def test_the_clock_waits_for_every_card_in_use_and_for_no_other(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (0, 1, 2)[device])
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert now() <= now()
    assert waited == [1, 2, 1, 2]
