"""Levels by rank: shares and thresholds of the pyramid config, with the similarity cap."""

import pytest
import torch
import torch.nn.functional as F

from fastdit import ConfigError, PyramidConfig, VideoGrid, sparse_attention
from fastdit.selectors.pyramid_levels import DROPPED, LevelRule, choose_levels
from fastdit_eval.attention_heads import make_heads
from fastdit_eval.selector_baselines import psa
from fastdit_eval.selector_task import SelectorTask
from fastdit_kernels import TileLayout, block_sparse_attention

SHARES = {0: 0.10, 1: 0.05, 3: 0.20}
GRID = VideoGrid(frames=5, height=9, width=9)  # 405 tokens
WITH_TEXT = VideoGrid(frames=5, height=9, width=9, text_length=21)


def make(**settings):
    return PyramidConfig(q_tile=32, kv_tile=8, order="gilbert", min_tokens=0, **settings)


def random_qkv(grid, generator, heads=2):
    return [torch.randn(1, heads, grid.length, 16, generator=generator) * gain for gain in (2, 1, 1)]


def levels_of(cut, top):
    """Level of every block, from the nodes of a cut; checks that a block has one level and all its tiles."""
    blocks = cut[top].shape[2]
    levels = torch.full((*cut[0].shape[:2], blocks), DROPPED)
    for level, nodes in enumerate(cut):
        padded = F.pad(nodes, (0, (blocks << (top - level)) - nodes.shape[2])).unflatten(2, (blocks, -1))
        used = padded.any(3)
        assert (levels[used] == DROPPED).all()
        levels[used] = level
    return levels


def psa_task(family):
    heads = make_heads(family, VideoGrid(frames=4, height=12, width=16))  # 768 tokens, 12 blocks of 64
    return SelectorTask(heads, 64, 64)


def by_block(mask):
    """Which tiles of 8 rows each block of 64 tokens is kept in: its level, or -1."""
    keep, layout = mask.to_dense()[0], mask.kv_layout
    cut = [keep[..., layout.level_offset(n) : layout.level_offset(n + 1)] for n in range(layout.num_levels)]
    return levels_of(cut, 3)


def test_shares_rank_as_the_published_selector_does():
    """Given its importance, the choice is that of the PSA baseline of the yardstick."""
    task = psa_task("mixed")
    theirs = psa(task, 1.0, 0.0).mask
    peak = F.pad(task._kept["importance"][0].unsqueeze(-1), (0, 7)).flatten(-2)  # all of a block in its first tile
    rule = LevelRule(shares=tuple(SHARES.items()))
    cut = choose_levels(peak, torch.zeros(2, 768, 4), rule, TileLayout((768,), 8, 4), None)
    assert (levels_of(cut, 3) == by_block(theirs)).float().mean() > 0.95  # blocks of equal peaks may change places


@pytest.mark.parametrize("family", ["local", "mixed", "diffuse"])
def test_shares_give_the_density_of_the_published_selector_and_no_less_mass(family):
    task = psa_task(family)
    theirs = psa(task, 1.0, 0.0).mask
    config = PyramidConfig(q_tile=64, kv_tile=8, q_samples=16, order="gilbert", level_shares=SHARES)
    tokens = task.ordered("gilbert")
    mask = config.select(tokens.query, tokens.key, tokens.value, task.grid)
    mask.validate()
    assert mask.density() == pytest.approx(theirs.density(), rel=0.01)
    assert mask.coverage() == pytest.approx(theirs.coverage(), rel=0.01)
    mass = task.true_mass("gilbert")[0]
    fine, kept = (
        [torch.where(kind(by_block(m)), mass, 0).sum() for m in (mask, theirs)] for kind in (is_fine, is_kept)
    )
    assert fine[0] > 0.98 * fine[1]
    assert kept[0] > 0.98 * kept[1]


def is_fine(levels):
    return levels == 0


def is_kept(levels):
    return levels >= 0


@pytest.mark.parametrize("grid", [GRID, WITH_TEXT])
@pytest.mark.parametrize(
    "settings",
    [
        {"level_shares": SHARES},
        {"level_shares": {2: 1.0}},
        {"level_shares": {0: 0.01}},
        {"level_mass": {0: 0.5, 1: 0.1, 2: 0.1, 3: 0.1}},
        {"level_mass": {1: 0.9}, "min_similarity": {1: 0.3}},
        {"level_shares": SHARES, "min_similarity": {1: 0.7, 3: 0.6}, "keep_own_tile": True},
    ],
)
def test_masks_are_disjoint_and_text_stays_fine(rng, grid, settings):
    q, k, v = random_qkv(grid, rng)
    mask = make(**settings).select(q, k, v, grid)
    mask.validate()
    assert mask.counts.min() >= 1
    if grid.text_length:
        fine = mask.to_dense()[..., : mask.kv_layout.num_tiles]
        assert fine[..., mask.kv_layout.segment_tiles(0)[0] :].all()
        assert fine[:, :, mask.q_layout.segment_tiles(0)[0] :].all()


def test_levels_go_by_value_not_by_position(rng):
    q, k, v = random_qkv(GRID, rng)
    first = make(level_shares={0: 0.1, 3: 0.2, 1: 0.05}).select(q, k, v, GRID)
    second = make(level_shares=((1, 0.05), (0, 0.1), (3, 0.2))).select(q, k, v, GRID)
    assert torch.equal(first.to_dense(), second.to_dense())
    # Four entries, none of them level 3: no tile of level 3 may appear (a published kernel pools the skipped by 8).
    mask = make(level_shares={0: 0.1, 1: 0.1, 2: 0.1}).select(q, k, v, GRID)
    assert mask.kv_layout.num_levels == 3


def test_finer_levels_take_the_heavier_blocks(rng):
    layout = TileLayout((405,), 8, 4)  # 51 tiles, 7 blocks of 64 tokens, the last of them ragged
    mass = torch.rand(2, 5, 51, generator=rng)
    rule = LevelRule(shares=((0, 0.2), (1, 0.3), (3, 0.3)))
    levels = levels_of(choose_levels(mass, torch.zeros(2, 405, 4), rule, layout, None), 3)
    importance = F.pad(mass, (0, 5)).unflatten(2, (7, 8)).sum(3)
    rank = importance.argsort(2, descending=True).argsort(2)
    expected = torch.tensor([0, 1, 1, 1, 3, 3, DROPPED])  # ends at round(1.4), round(3.5), round(5.6)
    assert torch.equal(levels, expected[rank])


def test_thresholds_reach_the_mass_asked_for(rng):
    layout = TileLayout((405,), 8, 4)
    mass = torch.rand(2, 9, 51, generator=rng) ** 4
    mass = mass / mass.sum(2, keepdim=True)
    rule = LevelRule(mass=((0, 0.5), (2, 0.2), (3, 0.1)))
    levels = levels_of(choose_levels(mass, torch.zeros(2, 405, 4), rule, layout, None), 3)
    importance = F.pad(mass, (0, 5)).unflatten(2, (7, 8)).sum(3)
    for upto, bound in ((0, 0.5), (2, 0.7), (3, 0.8)):
        kept = torch.where((levels >= 0) & (levels <= upto), importance, 0)
        assert (kept.sum(2) >= bound - 1e-6).all()
        # Without its lightest block it would fall short.
        lightest = kept.masked_fill(kept == 0, 9).amin(2)
        assert (kept.sum(2) - lightest < bound + 1e-6).all()
    floor = LevelRule(mass=((1, 0.01),), min_fine=0.3)
    cut = choose_levels(mass, torch.zeros(2, 405, 4), floor, TileLayout((405,), 8, 2), None)
    assert (levels_of(cut, 1) == 0).sum(2).eq(8).all()  # ceil(.3 * 26)


def test_blocks_that_are_not_alike_take_a_lower_level(rng):
    """Runs of 4 equal keys: pooling by 4 is allowed, by 8 is not; in the second half not even by 2."""
    layout = TileLayout((512,), 8, 4)
    key = torch.randn(1, 128, 32, generator=rng).repeat_interleave(4, 1)
    key[:, 256:] = torch.randn(1, 256, 32, generator=rng)
    rule = LevelRule(shares=((3, 1.0),), min_similarity=((1, 0.7), (2, 0.7), (3, 0.7)))
    levels = levels_of(choose_levels(torch.ones(1, 1, 64), key, rule, layout, None), 3)
    assert levels.flatten().tolist() == [2] * 4 + [0] * 4


def test_all_blocks_at_level_0_are_dense_attention(rng):
    q, k, v = random_qkv(WITH_TEXT, rng)
    for settings in ({"level_shares": {0: 1.0}}, {"level_mass": {0: 1.0}}):
        mask = make(**settings).select(q, k, v, WITH_TEXT)
        assert torch.allclose(block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level_shares": {6: 0.1}}, "num_levels=6"),
        ({"level_shares": {0: 0.6, 1: 0.5}}, "at most 1"),
        ({"level_shares": {0: 0.0}}, "above 0"),
        ({"level_shares": {-1: 0.5}}, "level"),
        ({"level_shares": ((0, 0.1), (0, 0.2))}, "twice"),
        ({"level_shares": 0.2}, "mapping"),
        ({"level_shares": {0: 0.1}, "level_mass": {0: 0.1}}, "exclude"),
        ({"level_shares": {0: 0.1}, "density": 0.3}, "density"),
        ({"min_similarity": {1: 0.7}}, "level_shares or level_mass"),
        ({"level_shares": {0: 0.1, 1: 0.1, 2: 0.1}, "min_similarity": {1: 0.7}}, "for each of the levels"),
        ({"level_mass": {0: 0.5}, "min_fine": 2.0}, "min_fine"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PyramidConfig(**settings)


def test_configs_with_levels_are_hashable_values():
    assert PyramidConfig(level_shares={3: 0.2, 0: 0.1}) == PyramidConfig(level_shares=((0, 0.1), (3, 0.2)))
    assert hash(PyramidConfig(level_shares={0: 0.1}))


def test_every_head_may_have_its_own_order(rng):
    """Ranks work in any order of the keys, and the order is chosen as for cuts."""
    q, k, v = random_qkv(WITH_TEXT, rng)
    config = PyramidConfig(q_tile=32, kv_tile=8, level_shares={0: 1.0})
    out, _ = sparse_attention(q, k, v, config, grid=(5, 9, 9), text_length=21)
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v), atol=1e-5)
