import pytest
import torch

from fastdit import ConfigError, VideoGrid
from fastdit.attention_profile import attention_rows, mass_share, mean_distance, row_agreement, sample_rows
from fastdit_eval.attention_heads import CHECK_SEEDS, FAMILIES, SEEDS, make_heads

GRID = VideoGrid(frames=5, height=10, width=12)


def seen(name, count=40):
    heads = make_heads(name, GRID, 32, (0,))
    rows = sample_rows(GRID.length, count)
    return attention_rows(heads.query.transpose(1, 2), heads.key.transpose(1, 2), rows), rows


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stated_share_of_keys_carries_the_mass(name):
    probabilities, _ = seen(name, GRID.length)
    assert float(mass_share(probabilities).mean()) == pytest.approx(FAMILIES[name].share, rel=0.35)


def test_places_shape_the_heads():
    uniform = torch.full((1, 40, GRID.length), 1 / GRID.length)
    distance = {}
    for name in ("local", "temporal", "frame", "wide", "stripe"):
        probabilities, rows = seen(name)
        distance[name] = mean_distance(probabilities, rows, GRID).mean((0, 1)) / mean_distance(
            uniform, rows, GRID
        ).mean((0, 1))
    assert (distance["local"] < 0.35).all()
    assert (distance["temporal"][1:] < 0.35).all()
    assert distance["temporal"][0] > 0.5
    assert distance["frame"][0] < 0.2
    assert (distance["frame"][1:] > 0.7).all()
    assert (distance["local"] < distance["wide"]).all()
    assert (distance["stripe"] > 0.7).all()


def test_stripes_are_shared_by_all_rows_and_scattered():
    probabilities, _ = seen("stripe")
    assert row_agreement(probabilities)[0] > 0.35 > 3 * row_agreement(seen("local")[0])[0]
    top = probabilities[0].mean(0).topk(GRID.length // 10).indices.sort().values
    assert (top.diff() > 1).float().mean() > 0.7


def test_few_keys_hold_most_of_a_heavy_tailed_row():
    heavy, local = (seen(name)[0].amax(-1).median() for name in ("heavy_tailed", "local"))
    assert heavy > 2 * local


def test_seeds_give_the_same_head_again_and_different_ones_apart():
    first, again = (make_heads("mixed", GRID, 16, (3, 4)) for _ in range(2))
    assert torch.equal(first.query, again.query)
    assert torch.equal(first.value[:, 1], make_heads("mixed", GRID, 16, (4,)).value[:, 0])
    assert not torch.equal(first.key[:, 0], first.key[:, 1])
    assert not set(SEEDS) & set(CHECK_SEEDS)


@pytest.mark.parametrize(
    ("name", "grid", "head_dim"),
    [("odd", GRID, 64), ("local", VideoGrid(frames=2, height=2, width=2, text_length=3), 64), ("local", GRID, 20)],
)
def test_what_cannot_be_made_is_refused(name, grid, head_dim):
    with pytest.raises(ConfigError, match="accepted are"):
        make_heads(name, grid, head_dim)
