import pytest
import torch

from fastdit_kernels import (
    InvalidInputError,
    TileLayout,
    gather_tokens,
    pad_to_tiles,
    pool_pyramid,
    scatter_tokens,
    unpad_from_tiles,
)


@pytest.mark.parametrize("per_head", [False, True])
def test_scatter_undoes_gather(per_head, rng):
    x = torch.randn(2, 3, 37, 5, generator=rng).transpose(2, 3).contiguous().transpose(2, 3)
    order = torch.stack([torch.randperm(37, generator=rng) for _ in range(3)])
    order = order if per_head else order[0]
    gathered = gather_tokens(x, order)
    expected = torch.stack([x[:, head][:, order[head] if per_head else order] for head in range(3)], 1)
    assert torch.equal(gathered, expected)
    assert torch.equal(scatter_tokens(gathered, order), x)


@pytest.mark.parametrize("segments", [(64,), (37,), (1,), (37, 11), (32, 16)])
def test_each_segment_starts_on_a_tile_boundary(segments, rng):
    layout = TileLayout(segments, 16)
    x = torch.randn(1, 2, sum(segments), 4, generator=rng)
    padded = pad_to_tiles(x, layout)
    assert padded.shape[2] == layout.num_tiles * 16
    assert torch.equal(unpad_from_tiles(padded, layout), x)
    assert torch.equal((padded != 0).any(-1).any(0).any(0), layout.row_members() > 0)
    if len(segments) == 2:
        start = layout.segment_tiles(0)[0] * 16
        assert torch.equal(padded[:, :, start : start + segments[1]], x[:, :, segments[0] :])


@pytest.mark.parametrize("segments", [(64,), (61,), (3,), (29, 13)])
def test_pyramid_rows_are_means_of_their_true_members(segments, rng):
    layout = TileLayout(segments, 8, 5)
    x = torch.randn(1, 1, sum(segments), 3, generator=rng, dtype=torch.float64)
    buffer, members = pool_pyramid(x, layout), layout.row_members()
    assert buffer.shape[2] == layout.total_tiles * 8 == len(members)
    row = 0
    for level in range(5):
        for index, part in enumerate(x.split(segments, 2)):
            for position in range(layout.segment_tiles(level)[index] * 8):
                run = part[0, 0, position << level : (position + 1) << level]
                assert members[row] == len(run)
                if len(run):
                    torch.testing.assert_close(buffer[0, 0, row], run.mean(0))
                else:
                    assert not buffer[0, 0, row].any()
                row += 1


def test_low_precision_is_pooled_in_fp32():
    x = torch.ones(1, 1, 4096, 1, dtype=torch.bfloat16)
    x[:, :, ::2] += 2**-7
    top = pool_pyramid(x, TileLayout((4096,), 16, 8))[0, 0, -16:].float()
    assert torch.allclose(top, torch.full_like(top, 1 + 2**-8), atol=2**-8)


@pytest.mark.parametrize("arguments", [((), 8), ((4, -1), 8), ((0,), 8), ((4,), 0), ((4,), 8, 0), ((4,), 8, 9)])
def test_impossible_layouts_are_refused(arguments):
    with pytest.raises(InvalidInputError):
        TileLayout(*arguments)


def test_wrong_length_is_refused():
    with pytest.raises(InvalidInputError, match="5 tokens"):
        pad_to_tiles(torch.zeros(1, 1, 5, 2), TileLayout((6,), 4))
