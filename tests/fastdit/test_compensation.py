"""The correction for the mass that a mask misses."""

import pytest
import torch
import torch.nn.functional as F

from fastdit import AdaptiveConfig, CachedConfig, VideoGrid, sparse_attention
from fastdit.compensation import corrected_attention
from fastdit_kernels import BlockMask, block_sparse_attention

GRID = VideoGrid(frames=3, height=7, width=11, text_length=21)


def make(**settings):
    return AdaptiveConfig(**{"q_tile": 32, "kv_tile": 8, "min_tokens": 0, "pooled_level": 3, **settings})


def random_qkv(generator, length=GRID.length):
    return (torch.randn(1, 2, length, 16, generator=generator) for _ in range(3))


def brute_force(q, k, v, keep, rows, tile):
    """Level-0 tiles kept by `keep` `[NQ, NK]`, the other keys as one mean of each pair, weighed by true mass."""
    out = torch.empty_like(q)
    for number in range(keep.shape[0]):
        span = slice(number * tile, (number + 1) * tile)
        scores = q[span] @ k.T / q.shape[1] ** 0.5
        fine = keep[number].repeat_interleave(8)
        pooled_k, pooled_v = (x[~fine].view(-1, 2, x.shape[1]).mean(1) for x in (k, v))
        coarse = q[span] @ pooled_k.T / q.shape[1] ** 0.5 + torch.tensor(2.0).log()
        picked = torch.tensor([(2 * r + 1) * tile // (2 * rows) for r in range(rows)])
        full = scores.logsumexp(1)
        mass = (scores[:, fine].logsumexp(1) - full).exp()[picked].mean()
        estimate = (coarse.logsumexp(1) - full).exp()[picked].mean()
        weight = coarse.exp() * (1 - mass) / estimate
        total = scores[:, fine].exp() @ v[fine] + weight @ pooled_v
        out[span] = total / (scores[:, fine].exp().sum(1) + weight.sum(1)).unsqueeze(1)
    return out


def test_it_weighs_kept_and_pooled_tiles_by_their_true_mass(rng):
    q, k, v = (x.double() for x in random_qkv(rng, 128))
    keep = torch.zeros(1, 2, 4, 16 + 8, dtype=torch.bool)
    coarse = torch.rand(1, 2, 4, 8, generator=rng) < 0.5
    coarse[..., 0], coarse[..., 1] = True, False
    keep[..., 16:] = coarse
    keep[..., :16] = ~coarse.repeat_interleave(2, -1)
    mask = BlockMask.from_dense(keep, q_len=128, kv_len=128, q_tile=32, kv_tile=8, num_levels=2)
    out = corrected_attention(q, k, v, mask)
    for head in range(2):
        expected = brute_force(q[0, head], k[0, head], v[0, head], keep[0, head, :, :16], 4, 32)
        assert torch.allclose(out[0, head], expected, atol=1e-5)


def test_without_pooled_tiles_the_output_is_scaled_by_the_kept_mass(rng):
    q, k, v = random_qkv(rng, 64)
    keep = torch.tensor([True, True, True, False, False, True, False, True]).view(1, 1, 1, 8).expand(1, 2, 2, 8)
    mask = BlockMask.from_dense(keep, q_len=64, kv_len=64, q_tile=32, kv_tile=8)
    mass = (q @ k.mT / 4).softmax(-1)[..., keep[0, 0, 0].repeat_interleave(8)].sum(-1)
    out = corrected_attention(q, k, v, mask, rows=32)
    mean = mass.unflatten(2, (2, 32)).mean(3).repeat_interleave(32, 2)
    assert torch.allclose(out, mean.unsqueeze(-1) * block_sparse_attention(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("complement", ["none", "all"])
def test_nothing_changes_at_full_density(complement, rng):
    q, k, v = random_qkv(rng)
    out, _ = sparse_attention(
        q, k, v, make(density=1.0, complement=complement, rho=True), grid=(3, 7, 11), text_length=21
    )
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v), atol=1e-5)


def test_it_errs_less_on_a_diffuse_tail(rng):
    q, k, v = random_qkv(rng)
    # A heavy tile in front of a long flat tail of unlike keys, whose means look far too light.
    k = 2 * k
    k[:, :, :8] += 0.5 * q.mean(2, keepdim=True)
    v[:, :, :8] += 3
    exact = F.scaled_dot_product_attention(q, k, v)
    for complement in ("none", "all"):
        settings = {"density": 0.35, "complement": complement}
        errors = [
            (sparse_attention(q, k, v, make(rho=rho, **settings), grid=(3, 7, 11), text_length=21)[0] - exact).norm()
            for rho in (False, True)
        ]
        assert errors[1] < 0.95 * errors[0], complement


def test_a_query_tile_without_any_key_has_no_output(rng):
    q, k, v = random_qkv(rng, 64)
    keep = torch.ones(1, 2, 2, 8 + 4, dtype=torch.bool)
    keep[..., 8:] = False
    keep[:, :, 0] = False
    for levels, part in ((1, keep[..., :8]), (2, keep)):
        mask = BlockMask.from_dense(part, q_len=64, kv_len=64, q_tile=32, kv_tile=8, num_levels=levels)
        out = corrected_attention(q, k, v, mask)
        assert (out[:, :, :32] == 0).all()
        assert torch.allclose(out[:, :, 32:], F.scaled_dot_product_attention(q, k, v)[:, :, 32:], atol=1e-5)


def test_cached_does_as_its_source(rng):
    q, k, v = random_qkv(rng)
    outs = {}
    for rho in (False, True):
        for config in (make(rho=rho, density=0.3), CachedConfig(source=make(rho=rho, density=0.3))):
            outs[config.method, rho] = sparse_attention(q, k, v, config, grid=(3, 7, 11), text_length=21)[0]
    assert torch.equal(outs["cached", True], outs["adaptive", True])
    assert torch.equal(outs["cached", False], outs["adaptive", False])
    assert not torch.allclose(outs["cached", True], outs["cached", False], atol=1e-3)
