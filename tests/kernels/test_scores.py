import pytest
import torch

from fastdit_kernels import (
    InvalidInputError,
    KernelUnavailableError,
    TileLayout,
    stratified_rows,
    tile_means,
    tile_scores,
)

LAYOUTS = [((61,), 16, 8), ((29, 13), 8, 6), ((1,), 4, 4)]


def tiles_of(x, layout):
    """The tokens of each tile, along the third axis."""
    return [part for segment in x.split(layout.segments, 2) for part in segment.split(layout.tile, 2)]


def sample(part, count):
    length = part.shape[2]
    return part[:, :, [int((r + 0.5) * length / count) for r in range(count)]]


def by_definition(query, key, q_layout, kv_layout, scale, represent):
    """Softmax over weighted representatives, one query representative at a time, in fp64."""
    queries = [represent(part.double(), 0) for part in tiles_of(query, q_layout)]
    keys = [represent(part.double(), 1) for part in tiles_of(key, kv_layout)]
    sizes = [part.shape[2] for part in tiles_of(key, kv_layout)]
    rows = []
    for q in queries:
        weights = [(scale * q @ k.mT).exp().sum(3) * size / k.shape[2] for k, size in zip(keys, sizes, strict=True)]
        table = torch.stack(weights, -1)
        rows.append((table / table.sum(-1, keepdim=True)).mean(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize(("segments", "q_tile", "kv_tile"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_match_the_definition(segments, q_tile, kv_tile, dtype, rng):
    q_layout, kv_layout = TileLayout(segments, q_tile), TileLayout(segments, kv_tile)
    q = torch.randn(2, q_layout.length, 2, 8, generator=rng).to(dtype).transpose(1, 2)
    k = torch.randn(2, 2, q_layout.length, 8, generator=rng).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean = tile_scores(q, k, q_layout, kv_layout, scale=0.4)
    expected = by_definition(q, k, q_layout, kv_layout, 0.4, lambda part, _: part.mean(2, keepdim=True))
    torch.testing.assert_close(mean, expected.to(wide))
    sampled = tile_scores(q, k, q_layout, kv_layout, estimator="sampled", q_samples=3, kv_samples=2, scale=0.4)
    expected = by_definition(q, k, q_layout, kv_layout, 0.4, lambda part, side: sample(part, (3, 2)[side]))
    torch.testing.assert_close(sampled, expected.to(wide))
    torch.testing.assert_close(sampled.sum(-1), torch.ones_like(sampled[..., 0]))


def test_sampling_every_token_is_exact(rng):
    layout = TileLayout((32,), 8)
    q, k = (torch.randn(1, 2, 32, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    exact = (q @ k.mT).softmax(-1).unflatten(3, (4, 8)).sum(4).unflatten(2, (4, 8)).mean(3)
    got = tile_scores(q, k, layout, layout, estimator="sampled", q_samples=8, kv_samples=8, scale=1.0)
    torch.testing.assert_close(got, exact)


def antidiagonal_by_definition(query, key, q_layout, kv_layout, scale, stride):
    """Antidiagonal means of runs, one pair of runs at a time; ragged tiles stretched by repeating tokens."""

    def runs(x, layout):
        whole = [sample(part, layout.tile) for part in tiles_of(x.double(), layout)]
        return [[run[0, 0] for run in part.split(stride, 2)] for part in whole]

    sizes = [part.shape[2] for part in tiles_of(key, kv_layout)]
    table = []
    for q_runs in runs(query, q_layout):
        rows = []
        for q in q_runs:
            weights = []
            for k_runs, size in zip(runs(key, kv_layout), sizes, strict=True):
                scores = torch.stack([sum(q[stride - 1 - i] @ k[i] for i in range(stride)) / stride for k in k_runs])
                weights.append((scale * scores).exp().sum() * size / len(k_runs))
            rows.append(torch.stack(weights) / sum(weights))
        table.append(torch.stack(rows).mean(0))
    return torch.stack(table)


@pytest.mark.parametrize(("segments", "q_tile", "kv_tile"), [((61,), 16, 8), ((29, 13), 8, 4), ((1,), 4, 4)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_antidiagonal_scores_match_the_definition(segments, q_tile, kv_tile, stride, rng):
    q_layout, kv_layout = TileLayout(segments, q_tile), TileLayout(segments, kv_tile)
    q, k = (torch.randn(1, 1, q_layout.length, 8, generator=rng) for _ in range(2))
    got = tile_scores(q, k, q_layout, kv_layout, estimator="antidiagonal", stride=stride, scale=0.4)
    expected = antidiagonal_by_definition(q, k, q_layout, kv_layout, 0.4, stride)
    torch.testing.assert_close(got[0, 0], expected.float())
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got[..., 0]))


def test_antidiagonals_see_a_diagonal_that_means_do_not():
    # Within a tile pair the products of equal places are large and all others cancel in the mean.
    layout = TileLayout((64,), 8)
    signs = torch.tensor([[1.0, 1], [1, -1]])
    signs = torch.kron(torch.kron(signs, signs), signs)
    signs[:, 0] = 0  # the rows then sum to zero
    q = torch.randn(1, 1, 64, 8, generator=torch.Generator().manual_seed(1)) * 0.01
    k = q.clone()
    q[:, :, 8:16] += 3 * signs
    k[:, :, 40:48] += 3 * signs.flip(0)  # q_(7-i) . k_i is large
    mean = tile_scores(q, k, layout, layout)[0, 0, 1, 5]
    assert tile_scores(q, k, layout, layout, estimator="antidiagonal", stride=8)[0, 0, 1, 5] > 3 * mean


def test_samples_stay_inside_their_tile():
    layout = TileLayout((21, 2), 8)
    rows = stratified_rows(layout, 4).view(4, 4)
    assert rows.tolist() == [[1, 3, 5, 7], [9, 11, 13, 15], [16, 17, 19, 20], [21, 21, 22, 22]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operators_are_registered_properly(dtype, rng):
    x = torch.randn(1, 2, 21, 4, generator=rng, dtype=dtype)
    torch.library.opcheck(torch.ops.fastdit.tile_means.default, (x, [15, 6], 8, "auto"))
    arguments = (x[:, :, :12], x[:, :, :20], torch.zeros(20, dtype=dtype), 3, 2, 0.5, "auto")
    torch.library.opcheck(torch.ops.fastdit.representative_mass.default, arguments)


def test_wrong_inputs_are_refused():
    layout, x = TileLayout((8,), 4), torch.zeros(1, 1, 8, 4)
    with pytest.raises(InvalidInputError, match="with 2 levels"):
        tile_scores(x, x, layout, TileLayout((8,), 4, 2))
    with pytest.raises(InvalidInputError, match="kv_samples=0"):
        tile_scores(x, x, layout, layout, estimator="sampled", kv_samples=0)
    with pytest.raises(InvalidInputError, match=r"\[B, H, 8, D\]"):
        tile_means(x[:, :, 1:], layout)
    with pytest.raises(InvalidInputError, match="stride must divide"):
        tile_scores(x, x, layout, layout, estimator="antidiagonal", stride=3)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        tile_scores(x, x, layout, layout, implementation="triton")
