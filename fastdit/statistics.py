"""What a run did: which calls were dense and why, and how many scores the sparse ones computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

# Enough for a 60-layer model over 100 steps with three branches; older records are dropped beyond it.
MAX_RECORDS = 20_000


@dataclass(frozen=True)
class ReuseRecord:
    """What the cached method did in one call.

    Args:
        age: Steps since the mask was built.
        built: Whether it was built in this call.
        kept: Whether it had room to be kept.
        refreshed_heads: Heads built anew alone, because their recall had fallen.
        recall: Recall of the mask on sampled rows, `[H]` on the device, mean over the batch; `None` if not measured.
        drift: What the recall has lost since each head's mask was built, `[H]`; `None` in the call that built it
            and where the recall was not measured.
    """

    age: int
    built: bool
    kept: bool
    refreshed_heads: int
    recall: torch.Tensor | None
    drift: torch.Tensor | None


def join_reuse(records: Sequence[ReuseRecord | None]) -> ReuseRecord | None:
    """What the launches of one call did, as one record."""
    found = [record for record in records if record is not None]
    if len(found) < 2:
        return found[0] if found else None
    measured = [record.recall for record in found if record.recall is not None]
    drifts = [record.drift for record in found if record.drift is not None]
    return ReuseRecord(
        age=max(record.age for record in found),
        built=all(record.built for record in found),
        kept=all(record.kept for record in found),
        refreshed_heads=sum(record.refreshed_heads for record in found),
        recall=torch.cat(measured) if measured else None,
        drift=torch.cat(drifts) if drifts else None,
    )


@dataclass(frozen=True)
class CallRecord:
    """One self-attention call.

    Args:
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer in the transformer.
        step: Denoising step.
        branch: Guidance branch.
        dense_reason: Why the call was dense; `None` if it was sparse.
        dense_pairs: Scores of dense attention, all heads and batch entries.
        kept_pairs: Scores computed, int64 `[H]`, summed over the batch, on the device; `None` if dense.
        reuse: What the cached method did; `None` for other methods.
    """

    transformer: int
    layer: int
    step: int
    branch: str
    dense_reason: str | None
    dense_pairs: int
    kept_pairs: torch.Tensor | None
    reuse: ReuseRecord | None = None

    def executed_pairs(self) -> int:
        """Scores computed; reads the device."""
        return self.dense_pairs if self.kept_pairs is None else int(self.kept_pairs.sum())


@dataclass
class RunStatistics:
    """Records of the latest run, one per (transformer, layer, branch, step).

    Beyond `MAX_RECORDS` the oldest are dropped, and count in the density alone.
    """

    run: int = 0
    records: dict[tuple[int, int, str, int], CallRecord] = field(default_factory=dict)
    # Calls, their scores, and those computed, the latter of each device: by whether they were sparse.
    _dropped: dict[tuple[bool, torch.device | None], tuple[int, int, int | torch.Tensor]] = field(default_factory=dict)

    def begin(self, run: int) -> None:
        """Start over if `run` is a new one."""
        if run != self.run:
            self.run = run
            self.records = {}
            self._dropped = {}

    def add(self, record: CallRecord) -> None:
        """Keep a record; no device synchronisation."""
        self.records[record.transformer, record.layer, record.branch, record.step] = record
        if len(self.records) > MAX_RECORDS:
            self._drop(self.records.pop(next(iter(self.records))))

    def _drop(self, record: CallRecord) -> None:
        kept = record.kept_pairs
        place = record.dense_reason is None, None if kept is None else kept.device
        number, pairs, computed = self._dropped.get(place, (0, 0, 0))
        computed = computed + (record.dense_pairs if kept is None else kept.sum())
        self._dropped[place] = number + 1, pairs + record.dense_pairs, computed

    @property
    def dropped(self) -> int:
        """Calls of the run whose records were dropped."""
        return sum(number for number, _, _ in self._dropped.values())

    def density(self, *, sparse_only: bool = False) -> float | None:
        """Scores computed / scores of dense attention over the run, dense calls included unless `sparse_only`.

        Returns:
            The density, or `None` if nothing was recorded.
        """
        chosen = [record for record in self.records.values() if not sparse_only or record.dense_reason is None]
        dropped = [rest for (sparse, _), rest in self._dropped.items() if sparse or not sparse_only]
        total = sum(record.dense_pairs for record in chosen) + sum(pairs for _, pairs, _ in dropped)
        executed = sum(record.executed_pairs() for record in chosen) + sum(int(computed) for _, _, computed in dropped)
        return executed / total if total else None

    def layer_step_density(self, transformer: int = 0) -> dict[tuple[int, int], float]:
        """Density of each `(layer, step)` of a transformer, over its branches and heads."""
        sums: dict[tuple[int, int], tuple[int, int]] = {}
        for record in self.records.values():
            if record.transformer == transformer:
                done, total = sums.get((record.layer, record.step), (0, 0))
                sums[record.layer, record.step] = (done + record.executed_pairs(), total + record.dense_pairs)
        return {place: done / total for place, (done, total) in sums.items()}

    def dense_reasons(self) -> dict[str, int]:
        """Dense calls by reason."""
        reasons: dict[str, int] = {}
        for record in self.records.values():
            if record.dense_reason is not None:
                reasons[record.dense_reason] = reasons.get(record.dense_reason, 0) + 1
        return reasons

    def mask_reuse(self) -> dict[str, float] | None:
        """What the cached method did over the run; reads the device.

        Returns:
            Calls that built their mask (`built`) and that reused one (`reused`), masks that found no room
            (`not_kept`), heads built anew alone (`refreshed_heads`); and over reusing calls, if measured, the mean and
            least recall of a head (`recall`, `least_recall`) and the mean loss since it was built (`drift`). `None`
            for other methods.
        """
        records = [record.reuse for record in self.records.values() if record.reuse is not None]
        if not records:
            return None
        built = sum(record.built for record in records)
        report: dict[str, float] = {
            "built": built,
            "reused": len(records) - built,
            "not_kept": sum(not record.kept for record in records),
            "refreshed_heads": sum(record.refreshed_heads for record in records),
        }
        # Layers, or transformers, may lie on several devices.
        recall = [record.recall.cpu() for record in records if not record.built and record.recall is not None]
        drift = [record.drift.cpu() for record in records if record.drift is not None]
        if recall and drift:
            values = torch.cat(recall).double()
            report["recall"], report["least_recall"] = values.mean().item(), values.min().item()
            report["drift"] = torch.cat(drift).double().mean().item()
        return report
