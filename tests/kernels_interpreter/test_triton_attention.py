"""The Triton kernel in the interpreter, against the reference in fp64."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdit_kernels import (
    BlockMask,
    TileLayout,
    available_implementations,
    block_sparse_attention,
    ops,
    pad_to_tiles,
    pool_pyramid,
    unpad_from_tiles,
)
from fastdit_kernels.implementations import triton_attention
from fastdit_kernels.implementations.triton_configurations import TritonConfiguration

# log2 of 0 is meant: -inf for padding and for empty rows.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# The kernel's three code paths; blocks smaller than the tiles on purpose in the last two.
PATHS = {
    "pointers": TritonConfiguration(64, 64, 4, 1),
    "descriptors": TritonConfiguration(64, 32, 4, 2, descriptors=True),
    "specialised": TritonConfiguration(64, 64, 4, 2, descriptors=True, warp_specialize=True),
}


@pytest.fixture
def on_path(monkeypatch):
    def choose(name):
        monkeypatch.setattr(triton_attention, "select_configuration", lambda *_: PATHS[name])

    return choose


def case(q_len, kv_len, dim, *, levels=1, share=0.5, q_tile=64, kv_tile=64, heads=2, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    q_parts, kv_parts = (x if isinstance(x, tuple) else (x,) for x in (q_len, kv_len))
    q = torch.randn(1, heads, sum(q_parts), dim, generator=rng).to(dtype)
    k, v = (torch.randn(1, heads, sum(kv_parts), dim, generator=rng).to(dtype) for _ in range(2))
    q_tiles = TileLayout(q_parts, q_tile).num_tiles
    kv_tiles = TileLayout(kv_parts, kv_tile, levels).total_tiles
    keep = torch.rand(1, heads, q_tiles, kv_tiles, generator=rng) < share
    mask = BlockMask.from_dense(keep, q_len=q_len, kv_len=kv_len, q_tile=q_tile, kv_tile=kv_tile, num_levels=levels)
    return q, k, v, mask


def check(q, k, v, mask, scale=None):
    out, lse = block_sparse_attention(q, k, v, mask, scale=scale, return_lse=True, implementation="triton")
    expected, expected_lse = oracle(q, k, v, mask, scale)
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    assert out.isfinite().all()
    # fp32 scores are rounded relative to their size, which exp turns into an absolute error.
    scores = (q.double() @ pool_pyramid(k, mask.kv_layout).double().mT).abs().max().item()
    rounding = 1e-6 * scores * (1 / math.sqrt(q.shape[-1]) if scale is None else abs(scale))
    error = (out.double() - expected).abs().max()
    assert error <= (TOLERANCE[q.dtype] + rounding) * max(1.0, expected.abs().max().item()), f"error {error:.1e}"
    finite = expected_lse.isfinite()
    assert torch.equal(lse == -math.inf, ~finite)
    assert torch.allclose(lse.double()[finite], expected_lse[finite], atol=rounding + 2e-5)
    return out, lse


def oracle(q, k, v, mask, scale=None):
    """The reference in fp64, on buffers pooled in the dtype of the input."""
    out, lse = ops.attend_buffers(
        pad_to_tiles(q.double(), mask.q_layout),
        pool_pyramid(k, mask.kv_layout).double(),
        pool_pyramid(v, mask.kv_layout).double(),
        mask.indices,
        mask.counts,
        list(mask.kv_layout.segments),
        mask.kv_layout.num_levels,
        mask.q_tile,
        mask.kv_tile,
        1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        "reference",
    )
    return unpad_from_tiles(out, mask.q_layout), unpad_from_tiles(lse, mask.q_layout)


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", PATHS)
def test_head_dims_and_dtypes(on_path, path, dtype, dim):
    on_path(path)
    check(*case(130, 200, dim, dtype=dtype))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("q_len", "kv_len"), [(128, 128), (1, 1), (65, 63), (31, 300), (200, 20), ((100, 7), (70, 3))])
def test_lengths_that_fit_no_tile_and_cross_attention(on_path, path, q_len, kv_len):
    on_path(path)
    check(*case(q_len, kv_len, 32, share=0.7))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kv_len", [512, 517, 129, 3, (300, 13)])
@pytest.mark.parametrize("levels", [2, 7])
def test_pooled_levels_with_ragged_last_groups(on_path, path, kv_len, levels):
    on_path(path)
    check(*case(70, kv_len, 32, levels=levels, share=0.4))


@pytest.mark.parametrize(("q_tile", "kv_tile"), [(64, 128), (128, 64), (128, 128)])
def test_tiles(q_tile, kv_tile):
    check(*case(260, 390, 32, levels=3, q_tile=q_tile, kv_tile=kv_tile))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kv_len", [256, 250])
def test_empty_rows_one_entry_and_all(on_path, path, kv_len):
    on_path(path)
    q, k, v, _ = case(256, kv_len, 32)
    keep = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    keep[:, :, 1, 3] = True
    keep[:, :, 2] = True
    keep[:, 1, 3, 0] = True
    mask = BlockMask.from_dense(keep, q_len=256, kv_len=kv_len, q_tile=64, kv_tile=64)
    out, lse = check(q, k, v, mask)
    assert not out[:, :, :64].any()
    assert (lse[:, :, :64] == -math.inf).all()


def test_slots_past_the_count_are_not_read():
    q, k, v, mask = case(128, 250, 32, share=0.5)
    indices = torch.where(mask.is_listed, mask.indices, 1 << 24)
    check(q, k, v, BlockMask(indices, mask.counts, mask.q_layout, mask.kv_layout))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 4.0])
def test_scales(scale):
    check(*case(64, 130, 32, levels=2), scale=scale)


def test_large_scores_do_not_overflow():
    q, k, v, mask = case(64, 200, 32, share=1.0)
    check(q * 30, k * 30, v, mask)


def test_a_mask_may_serve_all_batches_and_heads():
    q, k, v, _ = case(130, 130, 32, heads=3)
    q, k, v = (x.repeat(2, 1, 1, 1) for x in (q, k, v))
    for shape in ((1, 1), (2, 1), (1, 3)):
        keep = torch.rand(*shape, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.6
        check(q, k, v, BlockMask.from_dense(keep, q_len=130, kv_len=130, q_tile=64, kv_tile=64))


def test_long_lists_are_partitioned(rng):
    """More entries than one block of the partition, ragged tiles anywhere between them."""
    layout = TileLayout((64 * 400 - 5, 33), 64, 3)
    tails = triton_attention.tile_tails(layout.row_members(), 64)
    lists = torch.stack([torch.randperm(layout.total_tiles, generator=rng) for _ in range(3)]).to(torch.int32)[
        None, None
    ]
    counts = torch.tensor([[[layout.total_tiles, 300, 0]]], dtype=torch.int32)
    ordered, exact = triton_attention.partition(lists, counts, tails, 64)
    ragged = (layout.row_members().view(-1, 64) != (1 << layout.tile_levels()[:, None])).any(1)
    for row in range(3):
        used, split = int(counts[0, 0, row]), int(exact[0, 0, row])
        before, after = lists[0, 0, row, :used].long(), ordered[0, 0, row, :used].long()
        assert torch.equal(after[:split], before[~ragged[before]])
        assert sorted(after[split:].tolist()) == sorted(before[ragged[before]].tolist())


def test_the_longest_rows_come_first():
    counts = torch.tensor([[[3, 9, 0], [9, 1, 4]]], dtype=torch.int32)
    assert triton_attention.launch_order(counts).tolist() == [1, 3, 5, 0, 4, 2]
    assert sorted(triton_attention.launch_order(torch.ones(1, 3, 6000, dtype=torch.int32)).tolist()) == list(
        range(18000)
    )


def test_the_allocator_of_others_is_left_alone():
    from triton.runtime import _allocation

    before = _allocation._allocator.get()
    check(*case(64, 64, 32))
    assert _allocation._allocator.get() is before


def test_auto_never_chooses_the_interpreter():
    q, k, v, mask = case(64, 64, 32)
    assert available_implementations(q)["triton"] is None
    out = block_sparse_attention(q, k, v, mask)
    assert torch.equal(out, block_sparse_attention(q, k, v, mask, implementation="torch"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    q_len=st.integers(1, 200),
    kv_len=st.integers(1, 400),
    levels=st.integers(1, 7),
    share=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    q_tile=st.sampled_from([64, 128]),
    kv_tile=st.sampled_from([64, 128]),
    path=st.sampled_from(sorted(PATHS)),
    seed=st.integers(0, 1000),
)
def test_any_mask(on_path, q_len, kv_len, levels, share, q_tile, kv_tile, path, seed):
    on_path(path)
    check(*case(q_len, kv_len, 32, levels=levels, share=share, q_tile=q_tile, kv_tile=kv_tile, heads=1, seed=seed))
