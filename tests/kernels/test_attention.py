"""Every implementation against the definition, in fp64 where the oracle itself is concerned."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit_kernels import (
    BlockMask,
    InvalidInputError,
    KernelUnavailableError,
    TileLayout,
    available_implementations,
    block_sparse_attention,
)
from fastdit_kernels.implementations import torch_gather


def brute_force(q, k, v, mask):
    """Dense attention in fp64 over explicit pooled rows: independent of tiles, buffers and implementations."""
    q, k, v = (x.double() for x in (q, k, v))
    keep, layout = mask.to_dense(), mask.kv_layout
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, dtype=torch.float64)
    starts = [sum(mask.q_layout.segments[:i]) for i in range(len(mask.q_layout.segments))]
    rows_of_tile = []
    for start, length in zip(starts, mask.q_layout.segments, strict=True):
        rows_of_tile += [range(start + t, start + min(t + mask.q_tile, length)) for t in range(0, length, mask.q_tile)]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for tile, rows in enumerate(rows_of_tile):
                keys, values, logs = [], [], []
                for level in range(layout.num_levels):
                    column, start = layout.level_offset(level), 0
                    for length, tiles in zip(layout.segments, layout.segment_tiles(level), strict=True):
                        for t in range(tiles):
                            if keep[min(b, keep.shape[0] - 1), min(h, keep.shape[1] - 1), tile, column + t]:
                                span = mask.kv_tile << level
                                for first in range(t * span, min((t + 1) * span, length), 1 << level):
                                    run = slice(start + first, start + min(first + (1 << level), length))
                                    keys.append(k[b, h, run].mean(0))
                                    values.append(v[b, h, run].mean(0))
                                    logs.append(math.log(run.stop - run.start))
                        column, start = column + tiles, start + length
                if keys:
                    scores = q[b, h, list(rows)] @ torch.stack(keys).T / math.sqrt(q.shape[-1]) + torch.tensor(
                        logs, dtype=torch.float64
                    )
                    lse[b, h, list(rows)] = scores.logsumexp(-1)
                    out[b, h, list(rows)] = scores.softmax(-1) @ torch.stack(values)
    return out, lse


def case(q_len, kv_len, dim, generator, *, levels=1, share=0.4, q_tile=32, kv_tile=16, batch=2, heads=2):
    total = lambda length: sum(length) if isinstance(length, tuple) else length  # noqa: E731
    q = torch.randn(batch, heads, total(q_len), dim, generator=generator)
    k, v = (torch.randn(batch, heads, total(kv_len), dim, generator=generator) for _ in range(2))
    segments = lambda length: length if isinstance(length, tuple) else (length,)  # noqa: E731
    layout = TileLayout(segments(kv_len), kv_tile, levels)
    shape = (batch, heads, TileLayout(segments(q_len), q_tile).num_tiles, layout.total_tiles)
    keep = torch.rand(shape, generator=generator) < share
    mask = BlockMask.from_dense(keep, q_len=q_len, kv_len=kv_len, q_tile=q_tile, kv_tile=kv_tile, num_levels=levels)
    return q, k, v, mask


def assert_close(actual, expected, tolerance=1e-5):
    assert torch.isfinite(actual).all()
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory is NaN, so that an element nobody writes cannot pass."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poison(x):
        return x.fill_(math.nan) if x.dtype.is_floating_point else x

    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize(("q_len", "kv_len"), [(64, 64), (77, 61), (100, 20), (1, 1), (31, 300)])
def test_against_brute_force(implementation, dim, q_len, kv_len, rng):
    q, k, v, mask = case(q_len, kv_len, dim, rng)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)
    expected, expected_lse = brute_force(q, k, v, mask)
    assert_close(out, expected)
    finite = expected_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert torch.allclose(lse.double()[finite], expected_lse[finite], atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("kv_len", [64, 61, 3, 129, (61, 13)])
@pytest.mark.parametrize("levels", [2, 4, 7])
def test_pooled_levels_with_ragged_last_groups(implementation, kv_len, levels, rng):
    q, k, v, mask = case(40, kv_len, 32, rng, levels=levels, share=0.3, kv_tile=8)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)
    expected, expected_lse = brute_force(q, k, v, mask)
    assert_close(out, expected)
    finite = expected_lse.isfinite()
    assert torch.allclose(lse.double()[finite], expected_lse[finite], atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_the_reference_is_exact_in_fp64(implementation, rng):
    q, k, v, mask = case(70, 50, 64, rng, levels=3)
    out = block_sparse_attention(q.double(), k.double(), v.double(), mask, implementation=implementation)
    assert_close(out, brute_force(q, k, v, mask)[0], 1e-12)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_at_most_twice_as_much_as_dense_attention(implementation, dtype, rng):
    q, k, v, _ = case(96, 96, 64, rng)
    keep = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    mask = BlockMask.from_dense(keep, q_len=96, kv_len=96, q_tile=32, kv_tile=16)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    out = block_sparse_attention(q, k, v, mask, implementation=implementation)
    assert out.dtype == dtype
    budget = (F.scaled_dot_product_attention(q, k, v).double() - expected).abs().max()
    assert (out.double() - expected).abs().max() <= 2 * budget


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_rows_without_tiles_give_zero(implementation, rng):
    q, k, v, _ = case(96, 64, 32, rng)
    keep = torch.rand(2, 2, 3, 4, generator=rng) < 0.5
    keep[:, :, 1] = False
    keep[1, 1] = False
    mask = BlockMask.from_dense(keep, q_len=96, kv_len=64, q_tile=32, kv_tile=16)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)
    assert not out[:, :, 32:64].any()
    assert not out[1, 1].any()
    assert (lse[:, :, 32:64] == -math.inf).all()
    assert not out.isnan().any()


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("length", [128, 131])
def test_full_density_equals_dense_attention(implementation, length, rng):
    q, k, v, _ = case(length, length, 64, rng)
    tiles = (-(-length // 32), -(-length // 16))
    mask = BlockMask.from_dense(
        torch.ones(1, 1, *tiles, dtype=torch.bool), q_len=length, kv_len=length, q_tile=32, kv_tile=16
    )
    out = block_sparse_attention(q, k, v, mask, implementation=implementation)
    assert_close(out, F.scaled_dot_product_attention(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("length", [256, 251])
def test_equal_tokens_inside_each_group_make_pooling_exact(implementation, length, rng):
    level, tile = 3, 8
    q = torch.randn(1, 2, length, 32, generator=rng)
    groups = -(-length // (1 << level))
    k, v = (
        torch.randn(1, 2, groups, 32, generator=rng).repeat_interleave(1 << level, 2)[:, :, :length] for _ in range(2)
    )
    layout = TileLayout((length,), tile, level + 1)
    keep = torch.zeros(1, 1, -(-length // 32), layout.total_tiles, dtype=torch.bool)
    keep[..., layout.level_offset(level) :] = True
    mask = BlockMask.from_dense(keep, q_len=length, kv_len=length, q_tile=32, kv_tile=tile, num_levels=level + 1)
    mask.validate()
    assert mask.coverage() == 1.0
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)
    assert_close(out, F.scaled_dot_product_attention(q.double(), k.double(), v.double()))
    exact = (q.double() @ k.double().mT / math.sqrt(32)).logsumexp(-1)
    assert torch.allclose(lse.double(), exact, atol=1e-5)


def test_any_strides(rng):
    q, k, v, mask = case(70, 50, 32, rng)
    expected = block_sparse_attention(q, k, v, mask)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    views[0] = F.pad(q, (3, 2))[..., 3:-2]
    assert not any(x.is_contiguous() for x in views)
    assert torch.equal(block_sparse_attention(*views, mask), expected)


def test_a_mask_may_serve_all_batches_and_heads(rng):
    q, k, v, _ = case(64, 64, 32, rng)
    keep = torch.rand(1, 1, 2, 4, generator=rng) < 0.6
    keep[..., 0] = True
    sizes = {"q_len": 64, "kv_len": 64, "q_tile": 32, "kv_tile": 16}
    one = block_sparse_attention(q, k, v, BlockMask.from_dense(keep, **sizes))
    each = block_sparse_attention(q, k, v, BlockMask.from_dense(keep.expand(2, 2, -1, -1), **sizes))
    assert torch.equal(one, each)


@settings(max_examples=60)
@given(
    q_len=st.integers(1, 150),
    kv_len=st.integers(1, 150),
    q_tile=st.sampled_from([8, 32, 128]),
    kv_tile=st.sampled_from([8, 16, 64]),
    levels=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_fuzz_against_the_reference(q_len, kv_len, q_tile, kv_tile, levels, share, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, mask = case(
        q_len, kv_len, 32, generator, levels=levels, share=share, q_tile=q_tile, kv_tile=kv_tile, batch=1
    )
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="torch")
    expected, expected_lse = block_sparse_attention(
        q.double(), k.double(), v.double(), mask, return_lse=True, implementation="reference"
    )
    assert not out.isnan().any()
    assert (out - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert torch.allclose(lse.double(), expected_lse, atol=1e-5)


def test_rows_of_unequal_length_are_bucketed_not_padded_to_the_longest():
    counts = [64, 64, 8, 8, 2, 1, 1, 0]
    calls = list(torch_gather.bucket_rows(counts, row_bytes=1, workspace=1 << 20))
    assert [row for call in calls for row in call] == [0, 1, 2, 3, 4, 5, 6]
    gathered = sum(len(call) * counts[call[0]] for call in calls)
    assert gathered <= sum(counts) * (1 + torch_gather.MAX_PADDING)


def test_long_rows_are_not_padded_at_all():
    calls = torch_gather.bucket_rows([100, 99, 99, 98], row_bytes=10, workspace=3000)
    assert [list(call) for call in calls] == [[0], [1, 2], [3]]


def test_gathered_memory_is_bounded():
    calls = list(torch_gather.bucket_rows([1000] * 50, row_bytes=4096, workspace=1 << 20))
    assert [len(call) for call in calls] == [1] * 50


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_beyond_the_workspace_are_computed_in_pieces_and_merged(monkeypatch, rng, dtype, levels):
    q, k, v, mask = case(300, 500, 32, rng, levels=levels, share=0.7)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    widths = []
    dense = torch_gather._dense

    def noted(q, k, v, mask, scale):
        widths.append(k.shape[2])
        return dense(q, k, v, mask, scale)

    monkeypatch.setattr(torch_gather, "_dense", noted)
    at_once = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="torch")
    longest = max(widths)
    widths.clear()
    # Two entries of 16 tokens at a time, of keys and of values.
    monkeypatch.setattr(torch_gather, "workspace_bytes", lambda *_: 2 * 2 * 16 * 32 * q.element_size())
    pieces = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="torch")
    assert max(widths) <= 4 * 16 < longest
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(at_once, pieces, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=tolerance)


def test_the_operator_is_registered_properly(rng):
    from fastdit_kernels import ops, pad_to_tiles, pool_pyramid

    q, k, v, mask = case(40, 50, 32, rng, levels=2)
    arguments = (
        pad_to_tiles(q, mask.q_layout),
        pool_pyramid(k, mask.kv_layout),
        pool_pyramid(v, mask.kv_layout),
        mask.indices,
        mask.counts,
        list(mask.kv_layout.segments),
        2,
        32,
        16,
        0.2,
        "torch",
    )
    torch.library.opcheck(ops.attend_buffers, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_named_implementation_runs_or_says_why_not(rng):
    q, k, v, mask = case(40, 50, 32, rng)
    with pytest.raises(KernelUnavailableError, match="Triton"):
        block_sparse_attention(q, k, v, mask, implementation="triton")
    with pytest.raises(InvalidInputError, match="'auto'"):
        block_sparse_attention(q, k, v, mask, implementation="cuda")
    assert available_implementations(q)["torch"] is None


def test_auto_says_what_it_chose(rng, caplog):
    q, k, v, mask = case(40, 50, 32, rng)
    with caplog.at_level(logging.DEBUG, "fastdit_kernels"):
        block_sparse_attention(q, k, v, mask)
    assert "auto chose 'torch'" in caplog.text
    assert "auto passed over 'triton'" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :, 1:], k, v), "query is"),
        (lambda q, k, v: (q, k, v[..., 1:]), "value is"),
        (lambda q, k, v: (q, k.double(), v), "key is torch.float64"),
        (lambda q, k, v: (q[:1], k[:1], v[:1]), "batch size 2"),
    ],
)
def test_bad_tensors_are_named(change, message, rng):
    q, k, v, mask = case(40, 50, 32, rng)
    with pytest.raises(InvalidInputError, match=message):
        block_sparse_attention(*change(q, k, v), mask)
