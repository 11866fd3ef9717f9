import pytest
import torch

from fastdit_kernels import BlockMask, InvalidInputError, TileLayout
from fastdit_kernels.block_mask import LEVEL_SHIFT


def random_keep(shape, share, generator):
    return torch.rand(shape, generator=generator) < share


@pytest.mark.parametrize(("q_len", "kv_len", "levels"), [(256, 256, 1), (200, 333, 1), (5, 7, 1), (200, 333, 4)])
def test_dense_table_survives_the_round_trip(q_len, kv_len, levels, rng):
    layout = TileLayout((kv_len,), 16, levels)
    keep = random_keep((2, 3, -(-q_len // 32), layout.total_tiles), 0.4, rng)
    mask = BlockMask.from_dense(keep, q_len=q_len, kv_len=kv_len, q_tile=32, kv_tile=16, num_levels=levels)
    assert torch.equal(mask.to_dense(), keep)
    assert torch.equal(mask.counts.long(), keep.sum(-1))


def test_entries_carry_tile_and_level():
    keep = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    keep[..., 0] = keep[..., 2] = True
    mask = BlockMask.from_dense(keep, q_len=8, kv_len=16, q_tile=8, kv_tile=8, num_levels=2)
    assert mask.indices[0, 0, 0, :2].tolist() == [0, 2 | 1 << LEVEL_SHIFT]


def test_density_counts_partial_tiles_by_their_true_rows():
    full = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    assert BlockMask.from_dense(full, q_len=50, kv_len=40, q_tile=32, kv_tile=16).density() == 1.0
    last = torch.zeros_like(full)
    last[..., 1, 2] = True  # 18 query rows x 8 key rows
    mask = BlockMask.from_dense(last, q_len=50, kv_len=40, q_tile=32, kv_tile=16)
    assert mask.density() == pytest.approx(18 * 8 / (50 * 40))


def test_pooled_tiles_cost_their_rows_and_cover_their_tokens():
    layout = TileLayout((64,), 8, 3)
    keep = torch.zeros(1, 1, 2, layout.total_tiles, dtype=torch.bool)
    keep[..., layout.level_offset(2)] = True  # 8 rows standing for 32 tokens
    mask = BlockMask.from_dense(keep, q_len=64, kv_len=64, q_tile=32, kv_tile=8, num_levels=3)
    assert mask.density() == pytest.approx(8 / 64)
    assert mask.coverage() == pytest.approx(32 / 64)


@pytest.mark.parametrize("segments", [(64,), (333,), (61, 16), (64, 5), (29, 3)])
@pytest.mark.parametrize("levels", [1, 4])
def test_kept_pairs_are_those_of_the_dense_table(segments, levels, rng):
    q_layout, layout = TileLayout(segments, 32), TileLayout(segments, 8, levels)
    keep = random_keep((2, 3, q_layout.num_tiles, layout.total_tiles), 0.6, rng)
    mask = BlockMask.from_dense(keep, q_len=segments, kv_len=segments, q_tile=32, kv_tile=8, num_levels=levels)
    # What is not listed does not count, whatever it names.
    last = layout.total_tiles - 1 | (levels - 1) << LEVEL_SHIFT
    mask = BlockMask(torch.where(mask.is_listed, mask.indices, last), mask.counts, mask.q_layout, mask.kv_layout)
    expected = ((keep * layout.tile_rows()).sum(-1) * q_layout.tile_rows()).sum(-1)
    assert torch.equal(mask.kept_pairs(), expected)
    assert mask.kept_pairs() is mask.kept_pairs()


def test_unlisted_slots_may_hold_anything():
    indices = torch.tensor([[[[1, 999_999, -5]]]], dtype=torch.int32)
    counts = torch.tensor([[[1]]], dtype=torch.int32)
    mask = BlockMask(indices, counts, TileLayout((8,), 8), TileLayout((16,), 8))
    mask.validate()
    assert mask.to_dense().tolist() == [[[[False, True]]]]
    assert mask.density() == 0.5


@pytest.mark.parametrize(
    ("entries", "count", "message"),
    [
        ([0, 0], 2, "overlap"),
        ([0, 2 | 1 << LEVEL_SHIFT], 2, "overlap"),
        ([0 | 1 << LEVEL_SHIFT, 1], 2, "level"),
        ([9, 1], 2, "past"),
        ([0, 1], 3, "counts"),
    ],
)
def test_validate_names_what_is_wrong(entries, count, message):
    indices = torch.tensor([[[entries]]], dtype=torch.int32)
    counts = torch.tensor([[[count]]], dtype=torch.int32)
    mask = BlockMask(indices, counts, TileLayout((8,), 8), TileLayout((16,), 8, 2))
    with pytest.raises(InvalidInputError, match=message):
        mask.validate()


def test_shapes_and_dtypes_are_checked_at_construction():
    layout = TileLayout((16,), 8)
    with pytest.raises(InvalidInputError, match="int32"):
        BlockMask(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, dtype=torch.int32), layout, layout)
    with pytest.raises(InvalidInputError, match="3 query tiles"):
        BlockMask(torch.zeros(1, 1, 3, 1, dtype=torch.int32), torch.zeros(1, 1, 3, dtype=torch.int32), layout, layout)
    with pytest.raises(InvalidInputError, match=r"\[B, H, 2, 2\]"):
        BlockMask.from_dense(torch.ones(1, 1, 2, 5, dtype=torch.bool), q_len=16, kv_len=16, q_tile=8, kv_tile=8)
