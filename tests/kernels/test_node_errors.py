import pytest
import torch

from fastdit_kernels import InvalidInputError, KernelUnavailableError, TileLayout, pyramid_errors


def by_definition(rows, key, value, layout, scale):
    """Node after node, from the softmax over all keys; values are short enough to need no projection."""
    length = layout.segments[0]
    scores = scale * torch.einsum("gtsd,gkd->gtsk", rows, key)
    lse = scores.logsumexp(3, keepdim=True)
    size = ((scores - lse).exp() @ value.unsqueeze(1)).norm(dim=3)
    use, drop = [], []
    for level in range(layout.num_levels):
        run, span = 1 << level, layout.tile << level
        for first in range(0, length, span):
            tokens = range(first, min(first + span, length))
            weight = (scores[..., tokens] - lse).exp()
            fine, mass = weight @ value[:, None, tokens], weight.sum(3)
            pooled, pooled_mass = torch.zeros_like(fine), torch.zeros_like(mass)
            for start in tokens[::run]:
                group = range(start, min(start + run, length))
                total = len(group) * (scores[..., group].mean(3) - lse[..., 0]).exp()
                pooled, pooled_mass = (
                    pooled + total[..., None] * value[:, None, group].mean(2, True),
                    pooled_mass + total,
                )
            use.append((((pooled - fine).norm(dim=3) + (pooled_mass - mass).abs() * size) / 2).mean(2))
            drop.append(((fine.norm(dim=3) + mass * size) / 2).mean(2))
    return torch.stack(use, 2), torch.stack(drop, 2)


@pytest.mark.parametrize(
    ("segments", "tile", "num_levels"), [((61,), 8, 4), ((37, 6), 4, 3), ((1,), 8, 2), ((9, 4), 2, 1), ((45,), 4, 5)]
)
def test_errors_match_the_definition(segments, tile, num_levels, rng):
    layout = TileLayout(segments, tile, num_levels)
    rows = torch.randn(2, 3, 4, 10, generator=rng, dtype=torch.float64)
    key, value = (torch.randn(2, layout.length, 10, generator=rng, dtype=torch.float64) for _ in range(2))
    got = pyramid_errors(rows, key, value, layout, scale=0.4)
    for one, expected in zip(got, by_definition(rows, key, value, layout, 0.4), strict=True):
        torch.testing.assert_close(one, expected)
    for one, whole in zip(pyramid_errors(rows, key, value, layout, scale=0.4, workspace=1), got, strict=True):
        torch.testing.assert_close(one, whole)


def test_the_operator_is_registered_properly(rng):
    rows, key = torch.randn(2, 3, 4, 10, generator=rng), torch.randn(2, 43, 10, generator=rng)
    arguments = (rows, key, torch.randn(2, 43, 11, generator=rng), [37, 6], 4, 3, 0.4, 1 << 20, "auto")
    torch.library.opcheck(torch.ops.fastdit.pyramid_errors.default, arguments)


def test_wrong_inputs_are_refused():
    layout, rows, x = TileLayout((8,), 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 8, 4)
    with pytest.raises(InvalidInputError, match=r"key \(1, 7, 4\)"):
        pyramid_errors(rows, x[:, :7], x, layout)
    with pytest.raises(InvalidInputError, match="one dtype"):
        pyramid_errors(rows, x.half(), x, layout)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        pyramid_errors(rows, x, x, layout, implementation="triton")
