"""The kernels of pyramid errors in the Triton interpreter, against the eager twin in fp64."""

import pytest
import torch

from fastdit_kernels import KernelUnavailableError, TileLayout, pyramid_errors, triton_node_errors

# Relative to the largest error of a level. Weights and values of 16-bit inputs are rounded to bf16.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def inputs(segments, rng, dtype=torch.float32, groups=1, tiles=3, samples=4, dim=24):
    """Neighbouring tokens are alike, so that pooling changes less than dropping."""
    rows = 2 * torch.randn(groups, tiles, samples, dim, generator=rng)
    key, value = (torch.randn(groups, sum(segments), dim, generator=rng).cumsum(1) / 4 for _ in range(2))
    return [x.to(dtype) for x in (rows, key, value)]


def check(rows, key, value, layout, tolerance=None, **settings):
    tolerance = tolerance or TOLERANCE[rows.dtype]
    got = pyramid_errors(rows, key, value, layout, implementation="triton", **settings)
    wide = (x.double() for x in (rows, key, value))
    expected = pyramid_errors(*wide, layout, implementation="torch", **settings)
    counts = [layout.segment_tiles(level)[0] for level in range(layout.num_levels)]
    for name, one, other in zip(("use", "drop"), got, expected, strict=True):
        assert one.dtype == torch.float32
        for level, (a, b) in enumerate(zip(one.split(counts, 2), other.split(counts, 2), strict=True)):
            # Nothing to lose by using a tile as it is, nor by pooling a single token.
            largest = b.max() if b.any() else torch.ones(())
            error = (a.double() - b).abs().max() / largest
            assert error <= tolerance, (name, level, error)
    assert not got[0][..., : counts[0]].any()
    return got


@pytest.mark.parametrize(
    ("segments", "tile", "num_levels"),
    [
        ((1,), 16, 1),
        ((61,), 16, 1),
        ((61,), 16, 2),
        ((64,), 32, 4),
        ((530,), 16, 5),
        ((230,), 32, 6),
        ((200,), 64, 7),
        ((61, 21), 16, 3),
        ((1, 1), 64, 2),
    ],
)
def test_errors_match_the_twin(segments, tile, num_levels, rng):
    """Ragged last runs and tiles, one tile, nodes over parts of a program and over several, text."""
    check(*inputs(segments, rng), TileLayout(segments, tile, num_levels))


@pytest.mark.parametrize(
    ("dtype", "dim", "samples"),
    [(torch.bfloat16, 72, 4), (torch.float16, 128, 4), (torch.float32, 40, 4), (torch.float32, 24, 64)],
)
def test_smaller_programs_for_sm_120_match_the_twin(dtype, dim, samples, rng, monkeypatch):
    """Queries in slices, and half of the rows unless one query tile takes more."""
    monkeypatch.setattr(triton_node_errors, "compiled_for", lambda: "sm_120")
    layout = TileLayout((230, 20), 64, 4)
    check(*inputs(layout.segments, rng, dtype, tiles=9, samples=samples, dim=dim), layout)


@pytest.mark.parametrize(("samples", "tiles"), [(1, 70), (3, 17), (16, 5)])
def test_any_number_of_rows_and_tiles(samples, tiles, rng):
    layout = TileLayout((50, 7), 16, 3)
    check(*inputs(layout.segments, rng, groups=2, tiles=tiles, samples=samples, dim=40), layout, scale=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [8, 64])
def test_narrow_dtypes(dtype, dim, rng):
    layout = TileLayout((190, 21), 32, 4)
    check(*inputs(layout.segments, rng, dtype, dim=dim), layout)


def test_a_peak_far_above_all_other_scores(rng):
    """Padding has a score of zero, far above or below those of the keys, of which fp32 keeps few digits."""
    layout = TileLayout((75,), 16, 3)
    rows, key, value = inputs(layout.segments, rng)
    for sign in (1, -1):
        peaked = sign * 40 * rows[:, 1, :1] + 0.1 * key
        for errors in check(rows, peaked, value, layout, 5e-3, scale=1.0):
            assert errors.isfinite().all()


def test_equal_keys_and_values_within_runs_cost_nothing_to_pool(rng):
    layout = TileLayout((64, 9), 16, 3)
    rows, key, value = inputs(layout.segments, rng)
    for x in (key, value):
        x[:, :64] = x[:, :64:4].repeat_interleave(4, 1)
    use, drop = pyramid_errors(rows, key, value, layout, implementation="triton")
    assert use.max() < 1e-5 * drop.max()


@pytest.mark.parametrize(
    ("tile", "num_levels", "samples", "message"), [(8, 2, 4, "tiles of 8"), (16, 6, 4, "runs of 32"), (16, 1, 65, "65")]
)
def test_what_the_kernel_cannot_take_is_refused_by_name(tile, num_levels, samples, message):
    layout = TileLayout((30,), tile, num_levels)
    rows, x = torch.zeros(1, 1, samples, 8), torch.zeros(1, 30, 8)
    with pytest.raises(KernelUnavailableError, match=message):
        pyramid_errors(rows, x, x, layout, implementation="triton")
