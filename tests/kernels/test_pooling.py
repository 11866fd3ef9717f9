import pytest
import torch

from fastdit_kernels import InvalidInputError, KernelUnavailableError, TileLayout, pool_key_value


def by_definition(x, layout):
    """Level by level, run by run, in fp64."""
    rows = torch.zeros(*x.shape[:2], layout.total_tiles * layout.tile, x.shape[3], dtype=torch.float64)
    at = 0
    for level in range(layout.num_levels):
        for part, tiles in zip(x.double().split(layout.segments, 2), layout.segment_tiles(level), strict=True):
            for index, run in enumerate(part.split(1 << level, 2) if part.shape[2] else ()):
                rows[:, :, at + index] = run.mean(2)
            at += tiles * layout.tile
    return rows


@pytest.mark.parametrize(
    ("segments", "tile", "num_levels"),
    [((61,), 8, 4), ((29, 13), 8, 3), ((1,), 16, 2), ((130,), 16, 7), ((48, 16), 16, 1), ((5, 0, 3), 4, 2)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_both_buffers_hold_true_means(segments, tile, num_levels, dtype, rng):
    layout = TileLayout(segments, tile, num_levels)
    key = torch.randn(2, layout.length, 3, 5, generator=rng).to(dtype).transpose(1, 2)
    value = torch.randn(2, 3, layout.length, 5, generator=rng).to(dtype)
    for got, x in zip(pool_key_value(key, value, layout), (key, value), strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got, by_definition(x, layout).to(dtype))


@pytest.mark.parametrize("layout", [TileLayout((21, 6), 8, 3), TileLayout((16,), 8)])
def test_the_operator_is_registered_properly(layout, rng):
    key, value = (torch.randn(1, 2, layout.length, 4, generator=rng) for _ in range(2))
    arguments = (key, value, list(layout.segments), layout.tile, layout.num_levels, "auto")
    torch.library.opcheck(torch.ops.fastdit.pool_key_value.default, arguments)


def test_triton_by_name_runs_or_says_why_not(rng):
    x, layout = torch.randn(1, 1, 8, 4, generator=rng), TileLayout((8,), 8, 2)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        pool_key_value(x, x, layout, implementation="triton")
    with pytest.raises(KernelUnavailableError, match="float64"):
        pool_key_value(x.double(), x.double(), layout, implementation="triton")
    with pytest.raises(InvalidInputError, match="'flex' is unknown"):
        pool_key_value(x, x, layout, implementation="flex")


def test_unequal_inputs_are_refused():
    x = torch.zeros(1, 1, 8, 4)
    with pytest.raises(InvalidInputError, match="must agree"):
        pool_key_value(x, x[:, :, :4], TileLayout((8,), 8))
    with pytest.raises(InvalidInputError, match=r"\[B, H, 9, D\]"):
        pool_key_value(x, x, TileLayout((9,), 8))
