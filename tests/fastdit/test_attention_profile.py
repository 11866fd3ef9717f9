"""Profile of attention rows against loops over single keys."""

import math

import pytest
import torch

import fastdit
from fastdit import attention_profile as profile
from fastdit.errors import InvalidInputError
from fastdit.grid import VideoGrid
from fastdit.probe import AttentionProbe

GRID = VideoGrid(frames=3, height=4, width=5)
LENGTH = GRID.video_length


@pytest.fixture
def rows():
    return profile.sample_rows(LENGTH, 7)


@pytest.fixture
def seen(rng):
    return (3 * torch.randn(2, 7, LENGTH, generator=rng)).softmax(-1)


def test_rows_are_spread_and_never_more_than_there_are():
    assert profile.sample_rows(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert profile.sample_rows(3, 64).tolist() == [0, 1, 2]


@pytest.mark.parametrize("chunk", [1, 300, 1 << 24])
def test_sampled_rows_are_rows_of_dense_attention(rng, rows, chunk):
    query, key = (torch.randn(2, LENGTH, 3, 8, generator=rng) for _ in range(2))
    dense = torch.einsum("bihd,bjhd->bhij", query.double(), key.double()).mul(8**-0.5).softmax(-1).mean(0)
    found = profile.attention_rows(query, key, rows, chunk=chunk)
    torch.testing.assert_close(found.double(), dense[:, rows], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mass", [0.3, 0.95, 1.0])
def test_mass_share_counts_keys_one_by_one(seen, mass):
    for row, share in zip(seen.flatten(0, 1), profile.mass_share(seen, mass).flatten(), strict=True):
        total, count = 0.0, 0
        for value in sorted(row.double().tolist(), reverse=True):
            if total >= mass * float(row.double().sum()) - 1e-9:
                break
            total, count = total + value, count + 1
        assert share == pytest.approx(count / LENGTH)


def test_mass_share_and_entropy_at_the_ends():
    uniform, single = torch.full((100,), 0.01), torch.eye(100)[3]
    assert profile.mass_share(uniform) == pytest.approx(0.95)
    assert profile.mass_share(single) == pytest.approx(0.01)
    assert profile.entropy(uniform) == pytest.approx(1.0)
    assert profile.entropy(single) == 0.0
    with pytest.raises(InvalidInputError, match="mass"):
        profile.mass_share(uniform, 0.0)


def test_entropy_and_distance_by_loops(seen, rows):
    entropies, distances = profile.entropy(seen), profile.mean_distance(seen, rows, GRID)
    for head in range(2):
        for number, own in enumerate(rows.tolist()):
            values = seen[head, number].tolist()
            assert entropies[head, number] == pytest.approx(
                -sum(p * math.log(p) for p in values) / math.log(LENGTH), abs=1e-5
            )
            expected = [0.0, 0.0, 0.0]
            for key, value in enumerate(values):
                for axis, (a, b) in enumerate(zip(place(own), place(key), strict=True)):
                    expected[axis] += value * abs(a - b)
            assert distances[head, number].tolist() == pytest.approx(expected, abs=1e-4)


def place(token):
    return token // 20, token % 20 // 5, token % 5


def test_blocks_hold_all_mass_and_the_needed_ones_enough(seen):
    blocks = profile.block_mass(seen, 16)
    assert blocks.shape == (2, 7, 4)
    assert blocks[0, 0, 3] == pytest.approx(float(seen[0, 0, 48:].sum()), abs=1e-6)
    needed = profile.needed_blocks(blocks)
    for mass, kept in zip(blocks.flatten(0, 1), needed.flatten(0, 1), strict=True):
        assert mass[kept].sum() >= 0.95 - 1e-6
        # Without the smallest of them it would not be enough.
        assert mass[kept].sum() - mass[kept].min() < 0.95


def test_jaccard_of_sets():
    first = torch.tensor([[True, True, False, False]])
    assert profile.jaccard(first, first) == 1.0
    assert profile.jaccard(first, ~first) == 0.0
    assert profile.jaccard(first, torch.tensor([[True, False, True, False]])) == pytest.approx(1 / 3)
    assert profile.jaccard(first & False, first & False) == 1.0


def kind_of(logits, rows, grid):
    seen = logits.softmax(-1)[rows]
    uniform = torch.full((len(rows), grid.video_length), 1 / grid.video_length)
    return profile.classify(
        float(profile.mass_share(seen).mean()),
        profile.mean_distance(seen, rows, grid).mean(0),
        profile.mean_distance(uniform, rows, grid).mean(0),
        float(profile.row_agreement(seen)),
    )


def test_kinds_of_made_up_heads(rng):
    grid = VideoGrid(frames=6, height=8, width=8)
    places = profile.token_places(torch.arange(grid.video_length), grid)
    gaps = (places[:, None] - places[None]).abs()
    hot = torch.zeros(grid.video_length)
    hot[torch.randperm(grid.video_length, generator=rng)[:20]] = 12.0
    heads = {
        "local": -3 * gaps.sum(-1),
        "temporal": -3 * gaps[..., 1:].sum(-1),
        "stripe": hot.expand(grid.video_length, -1),
        "global": torch.zeros(grid.video_length, grid.video_length),
    }
    assert set(heads) == set(profile.KINDS)
    rows = profile.sample_rows(grid.video_length, 32)
    assert {kind: kind_of(logits, rows, grid) for kind, logits in heads.items()} == {kind: kind for kind in heads}


def test_the_probe_measures_chosen_steps_and_leaves_the_pipeline_as_it_was(tiny_wan, run):
    blocks = tiny_wan.transformer.blocks
    before = [block.attn1.processor for block in blocks]
    plain = run(tiny_wan)
    with AttentionProbe(tiny_wan, [0, 3], rows=5, block=4) as probe:
        with pytest.raises(fastdit.AlreadyEnabledError):
            fastdit.enable(tiny_wan)
        probed = run(tiny_wan)
    torch.testing.assert_close(probed, plain, atol=1e-4, rtol=1e-4)
    assert [block.attn1.processor for block in blocks] == before
    assert torch.equal(run(tiny_wan), plain)
    assert [(view.step, view.layer) for view in probe.views] == [(0, 0), (0, 1), (3, 0), (3, 1)]
    view = probe.views[0]
    assert view.grid == VideoGrid(frames=3, height=2, width=3)
    assert view.needed.shape == (2, 5, 5)
    assert view.patch.sum((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert len(view.kinds()) == 2


def test_the_probe_is_taken_out_after_an_error(tiny_wan):
    before = [block.attn1.processor for block in tiny_wan.transformer.blocks]
    with pytest.raises(ZeroDivisionError), AttentionProbe(tiny_wan, [0]):
        raise ZeroDivisionError
    assert [block.attn1.processor for block in tiny_wan.transformer.blocks] == before
    with fastdit.enable(tiny_wan), pytest.raises(fastdit.AlreadyEnabledError), AttentionProbe(tiny_wan, [0]):
        pass
    assert [block.attn1.processor for block in tiny_wan.transformer.blocks] == before
