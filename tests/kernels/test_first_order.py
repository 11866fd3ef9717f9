"""Pooled tiles to first order, against the formula written token by token in fp64."""

import pytest
import torch
import torch.nn.functional as F

from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention
from fastdit_kernels.first_order import level_covariances, level_masses
from fastdit_kernels.tiles import pool_pyramid

Q_TILE, KV_TILE, LEVELS = 32, 8, 4


def token_like(generator, shape, dtype=torch.float64):
    """Keys and values that are made from the same features, as a model does, and queries."""
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
    query = 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x.to(dtype) for x in (query, features, features @ mix))


def random_mask(generator, segments, heads=2):
    """Each run of 8 tiles of the first segment at one level or dropped, the other segments at level 0."""
    layout, blocks = TileLayout(segments, KV_TILE, LEVELS), -(-TileLayout(segments, KV_TILE).segment_tiles(0)[0] // 8)
    tiles = TileLayout(segments, Q_TILE).num_tiles
    level = torch.randint(-1, LEVELS, (1, heads, tiles, blocks), generator=generator)
    keep = torch.zeros(1, heads, tiles, layout.total_tiles, dtype=torch.bool)
    for number in range(LEVELS):
        first, count = layout.level_offset(number), layout.segment_tiles(number)[0]
        block = torch.arange(count) >> (3 - number)
        keep[..., first : first + count] = (level == number)[..., block]
    keep[..., layout.segment_tiles(0)[0] : layout.num_tiles] = True
    return BlockMask.from_dense(
        keep, q_len=segments, kv_len=segments, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=LEVELS
    )


def groups_of(x, length, level):
    """Mean of each token's group, `[..., length, D]`, and all members' number of a group."""
    number = torch.arange(length) >> level
    sums = torch.zeros((*x.shape[:-2], int(number[-1]) + 1, x.shape[-1]), dtype=x.dtype)
    means = sums.index_add(-2, number, x[..., :length, :]) / torch.bincount(number).unsqueeze(1)
    return means, torch.bincount(number).to(x.dtype)


def covariance(key, value, length, level):
    number = torch.arange(length) >> level
    k, v = (x[..., :length, :] - groups_of(x, length, level)[0].index_select(-2, number) for x in (key, value))
    return k.mT @ v / length


def by_definition(query, key, value, mask, rows):
    """Attention over the mask plus `scale sum_l u_l C_l q`, one head and query tile at a time."""
    layout, length, scale = mask.kv_layout, mask.kv_layout.segments[0], query.shape[3] ** -0.5
    out = block_sparse_attention(query, key, value, mask, implementation="reference").clone()
    keep = mask.to_dense().expand(*query.shape[:2], -1, -1)
    start = 0
    tiles = [part for segment in query.split(mask.q_layout.segments, 2) for part in segment.split(Q_TILE, 2)]
    for number, tile in enumerate(tiles):
        count = tile.shape[2]
        picked = torch.tensor([(2 * r + 1) * count // (2 * rows) for r in range(rows)])
        for head in range(query.shape[1]):
            scores = []
            for level in range(layout.num_levels):
                means, members = groups_of(key[0, head], length, level)
                first, width = layout.level_offset(level), layout.segment_tiles(level)[0]
                seen = keep[0, head, number, first : first + width].repeat_interleave(KV_TILE)[: len(means)]
                s = scale * tile[0, head] @ means.T + members.log()
                scores.append(s.masked_fill(~seen, -torch.inf))
            scores.append(scale * tile[0, head] @ key[0, head, length:].T)
            lse = torch.cat(scores, 1).logsumexp(1, keepdim=True)
            for level in range(1, layout.num_levels):
                several = groups_of(key[0, head], length, level)[1] > 1
                mass = ((scores[level] - lse).exp().nan_to_num() * several).sum(1)[picked].mean()
                moved = tile[0, head] @ covariance(key[0, head], value[0, head], length, level)
                out[0, head, start : start + count] += scale * mass * moved
        start += count
    return out


@pytest.mark.parametrize("segments", [(256,), (201, 13), (1,), (9, 1)])
def test_covariances_match_the_definition(segments, rng):
    layout = TileLayout(segments, KV_TILE, LEVELS)
    _, key, value = token_like(rng, (2, 3, layout.length, 16))
    found = level_covariances(pool_pyramid(key, layout), pool_pyramid(value, layout), layout)
    assert found.shape == (2, 3, LEVELS - 1, 16, 16)
    for level in range(1, LEVELS):
        torch.testing.assert_close(found[:, :, level - 1], covariance(key, value, segments[0], level))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_covariances_of_half_precision_are_those_of_its_numbers(dtype, rng):
    layout = TileLayout((250,), KV_TILE, LEVELS)
    _, key, value = token_like(rng, (1, 2, 250, 16), dtype)
    found = level_covariances(pool_pyramid(key, layout), pool_pyramid(value, layout), layout)
    assert found.dtype == torch.float32
    for level in range(1, LEVELS):
        expected = covariance(key.double(), value.double(), 250, level)
        assert (found[:, :, level - 1] - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("segments", [(256,), (201, 13), (200, 40), (9,)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_output_matches_the_definition(segments, rows, implementation, rng):
    query, key, value = token_like(rng, (1, 2, sum(segments), 16))
    mask = random_mask(rng, segments)
    settings = {"first_order_rows": rows, "implementation": implementation}
    out, lse = block_sparse_attention(query, key, value, mask, return_lse=True, **settings)
    torch.testing.assert_close(out, by_definition(query, key, value, mask, rows))
    plain = block_sparse_attention(query, key, value, mask, return_lse=True, implementation=implementation)
    torch.testing.assert_close(lse, plain[1])
    assert segments == (9,) or not torch.allclose(out, plain[0], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_the_definition(dtype, rng):
    query, key, value = token_like(rng, (1, 2, 256, 32), dtype)
    mask = random_mask(rng, (256,))
    out = block_sparse_attention(query, key, value, mask, first_order_rows=2)
    expected = by_definition(query.double(), key.double(), value.double(), mask, 2)
    assert out.dtype == dtype
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert (out.double() - expected).norm() < bound * expected.norm()


def test_flex_agrees(rng):
    query, key, value = token_like(rng, (1, 2, 256, 16), torch.float32)
    mask = random_mask(rng, (256,))
    outs = [
        block_sparse_attention(query, key, value, mask, first_order_rows=1, implementation=n) for n in ("flex", "torch")
    ]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_unlike_tokens_of_a_group_cost_a_fourth_of_the_error(level, rng):
    query, key, value = token_like(rng, (1, 2, 512, 16))
    layout = TileLayout((512,), KV_TILE, LEVELS)
    keep = (layout.tile_levels() == level).expand(1, 1, 512 // Q_TILE, -1)
    mask = BlockMask.from_dense(keep, q_len=512, kv_len=512, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=LEVELS)
    exact = F.scaled_dot_product_attention(query, key, value)
    plain, better = (
        (block_sparse_attention(query, key, value, mask, first_order_rows=rows) - exact).norm() for rows in (0, 1)
    )
    assert better < 0.25 * plain


def test_nothing_changes_where_nothing_is_pooled(rng):
    query, key, value = token_like(rng, (1, 2, 256, 16), torch.float32)
    layout = TileLayout((256,), KV_TILE, LEVELS)
    keep = torch.rand(1, 2, 8, layout.total_tiles, generator=rng) < 0.5
    keep[..., layout.num_tiles :] = False
    keep[:, :, 3] = False  # a query tile without any key
    mask = BlockMask.from_dense(keep, q_len=256, kv_len=256, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=LEVELS)
    plain, other = (block_sparse_attention(query, key, value, mask, first_order_rows=rows) for rows in (0, 2))
    assert torch.equal(plain, other)
    assert not other[:, :, 3 * Q_TILE : 4 * Q_TILE].any()


def test_a_last_group_of_one_token_stays_exact(rng):
    query, key, value = token_like(rng, (1, 1, 17, 16))
    layout = TileLayout((17,), KV_TILE, 2)
    keep = torch.tensor([True, True, False, False, True]).expand(1, 1, 1, -1)  # the 17th token at level 1
    mask = BlockMask.from_dense(keep, q_len=17, kv_len=17, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=2)
    assert layout.total_tiles == 5
    out = block_sparse_attention(query, key, value, mask, first_order_rows=4)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))


def test_a_video_of_one_token_has_no_covariance(rng):
    query, key, value = token_like(rng, (1, 1, 1, 16), torch.float32)
    layout = TileLayout((1,), KV_TILE, LEVELS)
    keep = (torch.arange(layout.total_tiles) == layout.level_offset(2)).expand(1, 1, 1, -1)
    mask = BlockMask.from_dense(keep, q_len=1, kv_len=1, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=LEVELS)
    torch.testing.assert_close(block_sparse_attention(query, key, value, mask, first_order_rows=4), value)


def test_groups_of_heads_and_shared_lists_do_not_show(rng, monkeypatch):
    query, key, value = token_like(rng, (2, 3, 214, 16))
    mask = random_mask(rng, (201, 13), heads=1)
    whole = block_sparse_attention(query, key, value, mask, first_order_rows=2)
    monkeypatch.setattr("fastdit_kernels.first_order.CPU_WORKSPACE_BYTES", 1)
    torch.testing.assert_close(block_sparse_attention(query, key, value, mask, first_order_rows=2), whole)
    own = BlockMask(mask.indices.repeat(2, 3, 1, 1), mask.counts.repeat(2, 3, 1), mask.q_layout, mask.kv_layout)
    torch.testing.assert_close(block_sparse_attention(query, key, value, own, first_order_rows=2), whole)


def test_masses_of_levels_leave_the_rest_to_level_0(rng):
    query, key, _ = token_like(rng, (1, 2, 256, 16))
    mask = random_mask(rng, (256,))
    keys = pool_pyramid(key, mask.kv_layout)
    _, lse = block_sparse_attention(query, key, key, mask, return_lse=True)
    mass = level_masses(query, keys, lse, mask, rows=Q_TILE, scale=0.25)
    fine = BlockMask.from_dense(
        mask.to_dense() & (mask.kv_layout.tile_levels() == 0),
        q_len=256, kv_len=256, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=LEVELS,
    )  # fmt: skip
    _, fine_lse = block_sparse_attention(query, key, key, fine, return_lse=True)
    rest = (fine_lse - lse).exp().nan_to_num().unflatten(2, (-1, Q_TILE)).mean(3)
    listed = mask.counts > 0
    torch.testing.assert_close((mass.sum(3) + rest)[listed], torch.ones_like(rest)[listed])
