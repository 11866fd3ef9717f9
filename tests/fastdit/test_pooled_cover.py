"""Pooled complement of the adaptive method: what is not kept is covered by pooled tiles, once."""

import pytest
import torch
import torch.nn.functional as F

from fastdit import AdaptiveConfig, ConfigError, VideoGrid
from fastdit.selectors.pooled_cover import refine_cover
from fastdit_kernels import TileLayout, block_sparse_attention, tile_scores

GRIDS = [
    VideoGrid(frames=4, height=8, width=9),  # 288 tokens, whole tiles
    VideoGrid(frames=3, height=7, width=11, text_length=21),  # 231 tokens, ragged
    VideoGrid(frames=1, height=3, width=4),  # less than a tile
]


def make(**settings):
    return AdaptiveConfig(
        **{"q_tile": 32, "kv_tile": 8, "min_tokens": 0, "complement": "all", "pooled_level": 3, **settings}
    )


def random_qkv(grid, generator):
    return (torch.randn(1, 2, grid.length, 16, generator=generator) for _ in range(3))


def by_splitting(mass, level, max_tiles):
    """The cover of one row, node by node: `(level, tile)`."""
    tiles = len(mass)

    def weight(node):
        return sum(mass[node[1] << node[0] : (node[1] + 1) << node[0]])

    def children(node):
        level, tile = node[0] - 1, 2 * node[1]
        return [(level, place) for place in (tile, tile + 1) if place << level < tiles]

    cover = [(level, tile) for tile in range(-(-tiles >> level))]
    while nodes := [node for node in cover if node[0] > 0]:
        heaviest = max(nodes, key=lambda node: (weight(node), node[0]))
        if len(cover) - 1 + len(children(heaviest)) > max_tiles:
            break
        cover.remove(heaviest)
        cover += children(heaviest)
    return set(cover)


@pytest.mark.parametrize("tiles", [1, 2, 3, 7, 8, 13])
@pytest.mark.parametrize("level", [1, 2, 4])
def test_the_heaviest_node_is_split_until_the_budget_is_spent(tiles, level, rng):
    mass = torch.randint(1, 200, (6, tiles), generator=rng).double()
    for max_tiles in range(tiles + 2):
        cover = refine_cover(mass, level, max_tiles=max_tiles)
        for row in range(len(mass)):
            found = {(lv, t) for lv, part in enumerate(cover) for t in part[row].nonzero().flatten().tolist()}
            expected = by_splitting(mass[row].tolist(), level, max_tiles)
            assert len(found) == len(expected)
            assert found == expected or len(mass[row].unique()) < tiles  # of equal nodes any may go first


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("settings", [{"density": 0.3}, {"top_p": 0.6}, {"density": 0.4, "min_similarity": 0.1}])
def test_every_key_is_covered_once(grid, settings, rng):
    q, k, v = random_qkv(grid, rng)
    mask = make(**settings).select(q, k, v, grid)
    mask.validate()
    assert (mask._token_uses() == 1).all()
    assert mask.coverage() == pytest.approx(1.0)


def test_the_density_counts_pooled_tiles(rng):
    q, k, v = random_qkv(GRIDS[0], rng)
    for density in (0.2, 0.5, 0.8):
        mask = make(density=density).select(q, k, v, GRIDS[0])
        assert (mask.counts == round(36 * density)).all()
    # The roots alone are 36 / 8 = 5 tiles.
    assert (make(density=0.0).select(q, k, v, GRIDS[0]).counts == 5).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_full_density_is_dense_attention(grid, rng):
    q, k, v = random_qkv(grid, rng)
    mask = make(density=1.0).select(q, k, v, grid)
    assert mask.density() == pytest.approx(1.0)
    exact = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(block_sparse_attention(q, k, v, mask), exact, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_equal_keys_and_values_in_a_group_lose_nothing(grid, rng):
    q, k, v = random_qkv(grid, rng)
    # All groups of level 3 lie in runs of 8 tokens of the video; text has runs of its own.
    k, v = (
        torch.cat(
            [part[:, :, ::8].repeat_interleave(8, 2)[:, :, : part.shape[2]] for part in x.split(grid.key_segments, 2)],
            2,
        )
        for x in (k, v)
    )
    mask = make(density=0.3).select(q, k, v, grid)
    exact = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(block_sparse_attention(q, k, v, mask), exact, atol=1e-5)


def test_text_stays_at_level_0_and_sees_everything(rng):
    grid = GRIDS[1]
    q, k, v = random_qkv(grid, rng)
    mask = make(density=0.4).select(q, k, v, grid)
    dense = mask.to_dense()
    assert dense.shape[2] == 8 + 1
    assert dense[..., 29:32].all()
    assert dense[:, :, 8, :32].all()
    assert not dense[:, :, :8, :29].all()
    exact = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(block_sparse_attention(q, k, v, mask)[:, :, 231:], exact[:, :, 231:], atol=1e-5)


def test_top_p_puts_just_enough_mass_on_level_0(rng):
    grid = GRIDS[1]
    q, k, v = random_qkv(grid, rng)
    q = 3 * q
    mask = make(top_p=0.6, min_density=0.0, max_density=1.0).select(q, k, v, grid)
    q_layout, kv_layout = TileLayout(grid.query_segments, 32), TileLayout(grid.key_segments, 8)
    mass = tile_scores(q, k, q_layout, kv_layout)
    fine = mask.to_dense()[..., :32]
    kept = torch.where(fine, mass, 0).sum(-1)[:, :, :8]
    assert (kept >= 0.6 - 1e-5).all()
    pairs = torch.where(fine, mass, 0)[..., :28].unflatten(-1, (-1, 2)).sum(-1)[:, :, :8]
    lightest = pairs.masked_fill(pairs == 0, 2).amin(-1)
    assert (kept - lightest < 0.6 + 1e-5).all()
    capped = make(top_p=1.0, min_density=0.0, max_density=0.5).select(q, k, v, grid)
    assert (capped.counts[:, :, :8] == 16).all()
    floored = make(top_p=0.0, min_density=0.4, max_density=0.5).select(q, k, v, grid)
    assert (floored.counts[:, :, :8] == round(0.4 * 32)).all()


def test_gated_tiles_stay_at_level_0(rng):
    direction = torch.randn(16, generator=rng)
    q, k = (direction + 0.05 * torch.randn(1, 1, 288, 16, generator=rng) for _ in range(2))
    k = k + 4 * torch.randn(36, 16, generator=rng).repeat_interleave(8, 0)
    k[:, :, 160:168] = 9 * torch.randn(8, 16, generator=rng)
    mask = make(density=0.3, min_similarity=0.6).select(q, k, k, GRIDS[0])
    mask.validate()
    assert mask.to_dense()[0, 0, :, 20].all()


def test_diffuse_heads_err_less_than_without_it(rng):
    grid = VideoGrid(frames=4, height=8, width=8)
    smooth = torch.randn(2, 1, 1, 16, 16, generator=rng).repeat_interleave(16, 3)
    q, noise = torch.randn(1, 1, 256, 16, generator=rng), torch.randn(2, 1, 1, 256, 16, generator=rng)
    k, v = smooth + 0.3 * noise
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [
        (block_sparse_attention(q, k, v, make(density=0.3, complement=name).select(q, k, v, grid)) - exact).norm()
        for name in ("none", "all")
    ]
    assert errors[1] < 0.4 * errors[0]


def test_the_level_is_checked():
    for level in (0, 8, 1.5):
        with pytest.raises(ConfigError, match=f"pooled_level={level}"):
            make(pooled_level=level)
