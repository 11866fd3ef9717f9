"""flex_attention driven by our lists, against the fp64 reference."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from fastdit_kernels import BlockMask, KernelUnavailableError, TileLayout, block_sparse_attention, pool_pyramid
from fastdit_kernels.dispatch import resolve
from fastdit_kernels.implementations import flex

Q_TILE, KV_TILE, DIM = 32, 16, 32


def case(q_len, kv_len, levels, generator, share=0.4, batch=2, heads=2):
    layout = TileLayout(kv_len, KV_TILE, levels)
    q = torch.randn(batch, heads, sum(q_len), DIM, generator=generator)
    k, v = (torch.randn(batch, heads, sum(kv_len), DIM, generator=generator) for _ in range(2))
    tiles = (TileLayout(q_len, Q_TILE).num_tiles, layout.total_tiles)
    keep = torch.rand(batch, heads, *tiles, generator=generator) < share
    keep[0, 0, 0] = False  # one empty row on purpose
    mask = BlockMask.from_dense(keep, q_len=q_len, kv_len=kv_len, q_tile=Q_TILE, kv_tile=KV_TILE, num_levels=levels)
    return q, k, v, mask


def expect(q, k, v, mask):
    return block_sparse_attention(q.double(), k.double(), v.double(), mask, return_lse=True, implementation="reference")


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize(
    ("q_len", "kv_len"),
    [((64,), (64,)), ((77,), (61,)), ((100,), (20,)), ((1,), (1,)), ((31,), (150,)), ((40, 9), (61, 13))],
)
def test_against_the_reference(levels, q_len, kv_len, rng):
    q, k, v, mask = case(q_len, kv_len, levels, rng)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="flex")
    expected, expected_lse = expect(q, k, v, mask)
    assert out.dtype == lse.dtype == torch.float32
    assert (out - expected).abs().max() <= 1e-5
    assert torch.allclose(lse.double(), expected_lse, atol=1e-5)
    assert not out[0, 0, :Q_TILE].any()
    assert (lse[0, 0, : min(Q_TILE, q_len[0])] == -math.inf).all()


def test_fp64_is_exact_and_bf16_is_within_its_rounding(rng):
    q, k, v, mask = case((70,), (90,), 3, rng)
    expected, _ = expect(q, k, v, mask)
    exact = block_sparse_attention(q.double(), k.double(), v.double(), mask, implementation="flex")
    assert (exact - expected).abs().max() <= 1e-12
    q, k, v = (x.bfloat16() for x in (q, k, v))
    out = block_sparse_attention(q, k, v, mask, implementation="flex")
    assert out.dtype == torch.bfloat16
    assert (out - expect(q, k, v, mask)[0]).abs().max() <= 0.02


def test_one_mask_for_all_batches_and_heads_and_any_strides(rng):
    q, k, v, _ = case((64,), (48,), 1, rng)
    keep = torch.rand(1, 1, 2, 3, generator=rng) < 0.6
    mask = BlockMask.from_dense(keep, q_len=64, kv_len=48, q_tile=Q_TILE, kv_tile=KV_TILE)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out = block_sparse_attention(*views, mask, implementation="flex")
    assert (out - expect(q, k, v, mask)[0]).abs().max() <= 1e-5


def flex_mask_of(mask):
    members = mask.kv_layout.row_members()
    return flex.to_flex_mask(members, mask.indices & ((1 << 28) - 1), mask.counts, Q_TILE, KV_TILE, len(members))


def test_lists_hold_the_same_tiles_and_only_tiles_with_padding_are_masked(rng):
    _, _, _, mask = case((77,), (61, 13), 3, rng)
    # What unlisted slots hold must not matter.
    mask.indices.masked_fill_(~mask.is_listed, 12345)
    converted = flex_mask_of(mask)
    assert torch.equal(converted.to_dense().bool(), mask.to_dense())
    padded = mask.kv_layout.tile_rows() < KV_TILE
    assert padded.any()
    assert not padded.all()
    assert torch.equal(converted.kv_num_blocks.long(), (mask.to_dense() & padded).sum(-1))
    assert torch.equal(converted.full_kv_num_blocks.long(), (mask.to_dense() & ~padded).sum(-1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from inside Inductor
def test_the_compiled_kernel_obeys_the_lists(rng):
    """The form used on CUDA, here through the C++ kernel (output only): lists, ln n and padding without the table."""
    q, k, v, mask = case((256,), (250,), 2, rng, batch=1)
    members = mask.kv_layout.row_members()
    bias = members.clamp_min(1).float().log()
    out = torch.compile(flex_attention, fullgraph=True, dynamic=False)(
        q,
        pool_pyramid(k, mask.kv_layout),
        pool_pyramid(v, mask.kv_layout),
        score_mod=lambda score, b, h, i, j: score + bias[j],
        block_mask=flex_mask_of(mask),
        scale=1 / math.sqrt(DIM),
    )
    expected, expected_lse = expect(q, k, v, mask)
    listed = expected_lse.isfinite()
    assert (out.double() - expected)[listed].abs().max() <= 1e-5


def test_sizes_that_would_fill_the_memory_are_refused(rng):
    length = 12_000
    q = torch.zeros(1, 1, length, 8)
    keep = torch.ones(1, 1, -(-length // 128), -(-length // 64), dtype=torch.bool)
    mask = BlockMask.from_dense(keep, q_len=length, kv_len=length)
    with pytest.raises(KernelUnavailableError, match=r"holds all .* scores in memory"):
        block_sparse_attention(q, q, q, mask, implementation="flex")


def test_auto_does_not_choose_it_on_a_cpu(caplog):
    with caplog.at_level("DEBUG", "fastdit_kernels"):
        assert resolve("auto", torch.zeros(1)) == "torch"
    assert "auto passed over 'flex': on cpu it runs only when named" in caplog.text
