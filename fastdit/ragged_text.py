"""Batches whose entries have different numbers of valid text tokens: a sequence of its own length for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby

import torch

from fastdit.errors import InvalidInputError
from fastdit.grid import VideoGrid
from fastdit.statistics import ReuseRecord, join_reuse
from fastdit.step_result import StepResult

# Attends over query, key and value `[b, s, H, D]` of a grid; the first batch entry among all of them tells runs apart.
AttendRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, VideoGrid, int], StepResult]


def ragged_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    text_lengths: Sequence[int],
    attend: AttendRows,
) -> tuple[torch.Tensor, torch.Tensor, ReuseRecord | None]:
    """Sparse attention in which the text tokens of an entry past its valid ones neither see nor are seen.

    Neighbouring entries of equal text length are computed together.

    Args:
        query: `[B, S, H, D]` in the model's token order, `S = grid.length`, valid text before invalid text.
        key: Likewise.
        value: Likewise.
        grid: Geometry with all text tokens.
        text_lengths: Valid text tokens of each batch entry.
        attend: Computes the entries of one text length.

    Returns:
        Output `[B, S, H, D]`, zero at invalid tokens; scores computed, int64 `[H]`, summed over the batch; what the
        cached method did.
    """
    check_text_lengths(grid, text_lengths, query.shape[0])
    out = torch.zeros_like(query)
    kept, records, first = [], [], 0
    for text_length, members in groupby(text_lengths):
        rows = slice(first, first + len(list(members)))
        part = dataclasses.replace(grid, text_length=text_length)
        q, k, v = (_cut(x[rows], grid, text_length) for x in (query, key, value))
        result = attend(q, k, v, part, first)
        _paste(out[rows], result.out, grid, part)
        kept.append(result.kept_pairs())
        records.append(result.reuse)
        first = rows.stop
    return out, torch.stack(kept).sum(0), join_reuse(records)


def ragged_dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: VideoGrid,
    text_lengths: Sequence[int],
    dense: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Dense attention as `ragged_step` has sparse attention.

    Args:
        query: `[B, S, H, D]` in the model's token order, `S = grid.length`, valid text before invalid text.
        key: Likewise.
        value: Likewise.
        grid: Geometry with all text tokens.
        text_lengths: Valid text tokens of each batch entry.
        dense: Attends over `[b, s, H, D]`.

    Returns:
        `[B, S, H, D]`, zero at invalid tokens.
    """
    check_text_lengths(grid, text_lengths, query.shape[0])
    out = torch.zeros_like(query)
    for entry, text_length in enumerate(text_lengths):
        rows = slice(entry, entry + 1)
        part = dataclasses.replace(grid, text_length=text_length)
        _paste(out[rows], dense(*(_cut(x[rows], grid, text_length) for x in (query, key, value))), grid, part)
    return out


def dense_pairs(grid: VideoGrid, batch: int, heads: int, text_lengths: Sequence[int] | None) -> int:
    """Scores of dense attention over a batch, those of invalid text tokens left out.

    Args:
        grid: Geometry with all text tokens.
        batch: Batch entries.
        heads: Attention heads.
        text_lengths: Valid text tokens of each batch entry; `None` for all.
    """
    if text_lengths is None:
        return batch * heads * grid.length**2
    check_text_lengths(grid, text_lengths, batch)
    return heads * sum((grid.video_length + text_length) ** 2 for text_length in text_lengths)


def check_text_lengths(grid: VideoGrid, text_lengths: Sequence[int], batch: int) -> None:
    """Refuse text lengths that do not fit the batch or the grid.

    Raises:
        InvalidInputError: Says what was given and what is accepted.
    """
    if len(text_lengths) != batch or not all(0 <= length <= grid.text_length for length in text_lengths):
        raise InvalidInputError(
            f"text_lengths={tuple(text_lengths)}: accepted is one number per batch entry, {batch} of them, "
            f"each from 0 to {grid.text_length}"
        )


def _cut(x: torch.Tensor, grid: VideoGrid, text_length: int) -> torch.Tensor:
    """Video and valid text of `[b, S, H, D]`, in the model's order."""
    video = x.narrow(1, grid.video_start, grid.video_length)
    text = x.narrow(1, grid.text_start, text_length)
    return torch.cat([text, video] if grid.text_first else [video, text], 1)


def _paste(out: torch.Tensor, values: torch.Tensor, grid: VideoGrid, part: VideoGrid) -> None:
    """Put what was computed for the geometry `part` where it belongs in `grid`."""
    for place, own, length in (
        (grid.video_start, part.video_start, part.video_length),
        (grid.text_start, part.text_start, part.text_length),
    ):
        out[:, place : place + length] = values[:, own : own + length]
