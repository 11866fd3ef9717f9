"""Batch entries with text lengths of their own: each equals the same entry attended alone."""

import dataclasses

import pytest
import torch

import fastdit
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.ragged_text import dense_pairs, ragged_step

CONFIG = fastdit.AdaptiveConfig(density=0.4, q_tile=8, kv_tile=4, min_tokens=0)


def attend(query, key, value, grid, first):
    return sparse_step(query, key, value, grid, CONFIG, MaskCache())


@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("text_lengths", [(3, 5), (5, 5), (0, 4), (2, 2, 5, 2)])
def test_every_entry_equals_itself_alone(text_first, text_lengths, rng):
    grid = fastdit.VideoGrid(frames=3, height=3, width=5, text_length=5, text_first=text_first)
    tensors = [torch.randn(len(text_lengths), grid.length, 2, 8, generator=rng) for _ in range(3)]
    poisoned = [x.clone() for x in tensors]
    for row, length in enumerate(text_lengths):
        for x in poisoned:
            x[row, grid.text_start + length : grid.text_start + 5] = float("nan")
    out, kept, reuse = ragged_step(*poisoned, grid, text_lengths, attend)
    assert reuse is None
    total = torch.zeros(2, dtype=torch.int64)
    for row, length in enumerate(text_lengths):
        text = torch.arange(length) + grid.text_start
        video = torch.arange(grid.video_length) + grid.video_start
        places = torch.cat([text, video] if text_first else [video, text])
        own = dataclasses.replace(grid, text_length=length)
        alone = attend(*(x[row : row + 1, places] for x in tensors), own, 0)
        assert torch.allclose(out[row, places], alone.out[0], atol=1e-6)
        rest = torch.ones(grid.length, dtype=torch.bool)
        rest[places] = False
        assert not out[row, rest].any()
        total += alone.kept_pairs()
    assert torch.equal(kept, total)
    assert dense_pairs(grid, len(text_lengths), 2, text_lengths) == 2 * sum((45 + n) ** 2 for n in text_lengths)


@pytest.mark.parametrize("text_lengths", [(3,), (3, 6), (-1, 3)])
def test_lengths_that_do_not_fit_are_refused(text_lengths, rng):
    grid = fastdit.VideoGrid(frames=1, height=3, width=5, text_length=5)
    x = torch.randn(2, grid.length, 2, 8, generator=rng)
    with pytest.raises(fastdit.InvalidInputError, match="text_lengths"):
        ragged_step(x, x, x, grid, text_lengths, attend)
