"""Statistics of runs that are long, or spread over devices."""

from unittest.mock import Mock

import pytest
import torch

from fastdit.statistics import CallRecord, ReuseRecord, RunStatistics


def call(step, kept=None, reuse=None):
    return CallRecord(0, 0, step, "cond", "dense_steps" if kept is None else None, 10, kept, reuse)


def test_records_that_were_dropped_count_in_the_density(monkeypatch):
    monkeypatch.setattr("fastdit.statistics.MAX_RECORDS", 3)
    stats = RunStatistics()
    stats.begin(1)
    for step in range(8):
        stats.add(call(step, None if step < 2 else torch.tensor([1, step % 2])))
    assert len(stats.records) == 3
    assert stats.dropped == 5
    assert stats.density() == pytest.approx((2 * 10 + 6 + 3) / 80)
    assert stats.density(sparse_only=True) == pytest.approx(9 / 60)
    stats.begin(2)
    stats.add(call(0))
    assert stats.dropped == 0
    assert stats.density() == 1.0


def test_what_lies_on_several_devices_is_put_together():
    """No tensor of a device fits one of another, so all go to the host."""
    stats = RunStatistics()
    stats.begin(1)
    for step, recall in enumerate((0.5, 0.9)):
        far = Mock(cpu=lambda recall=recall: torch.tensor([recall]))
        reuse = ReuseRecord(age=1, built=False, kept=True, refreshed_heads=0, recall=far, drift=far)
        stats.add(call(step, torch.tensor([1]), reuse))
    report = stats.mask_reuse()
    assert report["recall"] == pytest.approx(0.7)
    assert report["least_recall"] == pytest.approx(0.5)
