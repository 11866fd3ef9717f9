import pytest
import torch

from fastdit_kernels import (
    BlockMask,
    InvalidInputError,
    KernelUnavailableError,
    TileLayout,
    block_sparse_attention,
    gather_to_tiles,
    gather_tokens,
    pad_to_tiles,
    scatter_from_tiles,
    tiled_tokens,
    unpad_from_tiles,
)
from fastdit_kernels.attention import attend_tiles
from fastdit_kernels.tiled_tokens import TiledTokens

LAYOUTS = [TileLayout((37,), 8), TileLayout((29, 13), 8), TileLayout((1,), 16), TileLayout((32, 16), 16)]


def random_order(length, heads, per_head, generator):
    orders = torch.stack([torch.randperm(length, generator=generator) for _ in range(heads)])
    return orders if per_head else orders[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_head", [False, True])
def test_rows_go_where_the_order_says(layout, per_head, rng):
    x = torch.randn(2, layout.length, 3, 5, generator=rng).transpose(1, 2)
    order = random_order(layout.length, 3, per_head, rng)
    buffer = gather_to_tiles(x, order, layout)
    assert buffer.is_contiguous()
    row = place = 0
    for length, tiles in zip(layout.segments, layout.segment_tiles(0), strict=True):
        for offset in range(tiles * layout.tile):
            for head in range(3):
                token = (order[head] if per_head else order)[place + offset] if offset < length else None
                expected = torch.zeros(2, 5) if token is None else x[:, head, token]
                assert torch.equal(buffer[:, head, row + offset], expected)
        row, place = row + tiles * layout.tile, place + length
    assert torch.equal(scatter_from_tiles(buffer, order.int(), layout), x)
    joined = scatter_from_tiles(buffer, order, layout, token_major=True)
    assert torch.equal(joined, x)
    assert joined.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("layout", [TileLayout((21, 6), 8), TileLayout((16,), 8)])
def test_the_operators_are_registered_properly(layout, rng):
    x, order = torch.randn(1, 2, layout.length, 4, generator=rng), random_order(layout.length, 2, True, rng)
    settings = (order, list(layout.segments), layout.tile, "auto")
    torch.library.opcheck(torch.ops.fastdit.gather_to_tiles.default, (x, *settings))
    buffer = gather_to_tiles(x, order, layout)
    for token_major in (False, True):
        torch.library.opcheck(torch.ops.fastdit.scatter_from_tiles.default, (buffer, *settings, token_major))


@pytest.mark.parametrize("segments", [(37,), (29, 13), (32, 13)])
@pytest.mark.parametrize("levels", [1, 2])
def test_attention_takes_tokens_that_lie_in_tiles(segments, levels, rng, monkeypatch):
    q_layout, kv_layout = TileLayout(segments, 8), TileLayout(segments, 4, levels)
    q, k, v = (torch.randn(2, q_layout.length, 3, 5, generator=rng).transpose(1, 2) for _ in range(3))
    q_order, k_order = (random_order(q_layout.length, 3, per_head, rng) for per_head in (False, True))
    keep = torch.rand(2, 3, q_layout.num_tiles, kv_layout.total_tiles, generator=rng) < 0.4
    mask = BlockMask.from_dense(keep, q_len=segments, kv_len=segments, q_tile=8, kv_tile=4, num_levels=levels)
    moves = (q, q_order, q_layout), (k, k_order, TileLayout(segments, 4)), (v, k_order, TileLayout(segments, 4))
    plain = [gather_tokens(x, order) for x, order, _ in moves]
    expected = block_sparse_attention(*plain, mask)
    monkeypatch.setattr(tiled_tokens, "counts_passes", lambda x: True)
    tiled = [TiledTokens.in_order(*move) for move in moves]
    for part, x, (_, _, layout) in zip(tiled, plain, moves, strict=True):
        assert torch.equal(part.tokens, x)
        assert torch.equal(part.padded(layout), pad_to_tiles(x, layout))
        # Another layout than was foreseen.
        assert torch.equal(part.padded(TileLayout(segments, 16)), pad_to_tiles(x, TileLayout(segments, 16)))
    out, _ = attend_tiles(*tiled, mask)
    assert torch.equal(unpad_from_tiles(out, q_layout), expected)


def test_wrong_inputs_are_refused():
    x, order = torch.zeros(1, 2, 8, 4), torch.arange(8)
    with pytest.raises(InvalidInputError, match="2 levels"):
        gather_to_tiles(x, order, TileLayout((8,), 8, 2))
    with pytest.raises(InvalidInputError, match=r"\[B, H, 9, D\]"):
        gather_to_tiles(x, order, TileLayout((9,), 8))
    with pytest.raises(InvalidInputError, match=r"\[8\] and \[2, 8\]"):
        gather_to_tiles(x, order.expand(3, 8), TileLayout((8,), 8))
    with pytest.raises(InvalidInputError, match="int64 or int32"):
        scatter_from_tiles(x, order.float(), TileLayout((8,), 8))
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        gather_to_tiles(x, order, TileLayout((8,), 8), implementation="triton")
