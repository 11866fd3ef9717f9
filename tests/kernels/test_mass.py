import math

import pytest
import torch

from fastdit_kernels import InvalidInputError, KernelUnavailableError, TileLayout, block_mass


def by_definition(query, key, lse, q_layout, kv_layout, scale):
    """Sums over tile pairs of the whole score matrix, in fp64; level 0 only."""
    shares = (scale * (query.double() @ key.double().mT) - lse.double().unsqueeze(-1)).exp()
    columns = [part for segment in shares.split(kv_layout.segments, 3) for part in segment.split(kv_layout.tile, 3)]
    by_key = torch.stack([part.sum(3) for part in columns], -1)
    rows = [part for segment in by_key.split(q_layout.segments, 2) for part in segment.split(q_layout.tile, 2)]
    return torch.stack([part.sum(2) for part in rows], 2)


@pytest.mark.parametrize(("segments", "q_tile", "kv_tile"), [((61,), 16, 8), ((29, 13), 8, 6), ((1,), 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masses_match_the_definition(segments, q_tile, kv_tile, dtype, rng):
    q_layout, kv_layout = TileLayout(segments, q_tile), TileLayout(segments, kv_tile)
    q, k = (torch.randn(2, 2, q_layout.length, 8, generator=rng).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    lse = (0.3 * (q.to(wide) @ k.to(wide).mT)).logsumexp(-1)
    expected = by_definition(q, k, lse, q_layout, kv_layout, 0.3)
    total = block_mass(q, k, lse, q_layout, kv_layout, scale=0.3, reduction="sum")
    assert total.dtype == wide
    torch.testing.assert_close(total, expected.to(wide))
    mean = block_mass(q, k, lse, q_layout, kv_layout, scale=0.3)
    torch.testing.assert_close(mean.sum(-1), torch.ones_like(mean[..., 0]))


def test_chunks_do_not_show(rng, monkeypatch):
    layout = TileLayout((61,), 8)
    q, k = (torch.randn(1, 2, 61, 8, generator=rng) for _ in range(2))
    lse = (q @ k.mT).logsumexp(-1)
    whole = block_mass(q, k, lse, layout, layout)
    monkeypatch.setattr("fastdit_kernels.mass.CPU_WORKSPACE_BYTES", 1)
    torch.testing.assert_close(block_mass(q, k, lse, layout, layout), whole)


def test_rows_without_keys_have_no_mass(rng):
    layout = TileLayout((10,), 4)
    q = torch.randn(1, 1, 10, 8, generator=rng)
    lse = (q @ q.mT).logsumexp(-1)
    lse[..., 4:8] = -math.inf
    mass = block_mass(q, q, lse, layout, layout)
    assert not mass[:, :, 1].any()
    assert mass[:, :, 0].all()


def test_pooled_tiles_weigh_their_tokens(rng):
    q_layout, kv_layout = TileLayout((12,), 4), TileLayout((12,), 2, 2)
    q = torch.randn(1, 1, 12, 8, generator=rng, dtype=torch.float64)
    k = torch.randn(1, 1, 6, 8, generator=rng, dtype=torch.float64).repeat_interleave(2, 2)
    lse = (q @ k.mT / math.sqrt(8)).logsumexp(-1)
    mass = block_mass(q, k, lse, q_layout, kv_layout)
    fine, coarse = mass.split([6, 3], -1)
    torch.testing.assert_close(coarse, fine.unflatten(-1, (3, 2)).sum(-1))  # equal keys in a run: pooling is exact


def test_the_operator_is_registered_properly(rng):
    q, k = torch.randn(1, 2, 8, 4, generator=rng), torch.randn(1, 2, 12, 4, generator=rng)
    arguments = (q, k, torch.zeros(12), torch.ones(1, 2, 8), 4, 6, 0.5, "auto")
    torch.library.opcheck(torch.ops.fastdit.block_mass.default, arguments)


def test_wrong_inputs_are_refused():
    layout, x = TileLayout((8,), 4), torch.zeros(1, 1, 8, 4)
    with pytest.raises(InvalidInputError, match=r"lse \(1, 1, 7\)"):
        block_mass(x, x, torch.zeros(1, 1, 7), layout, layout)
    with pytest.raises(InvalidInputError, match="equal dtypes"):
        block_mass(x, x.half(), torch.zeros(1, 1, 8), layout, layout)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        block_mass(x, x, torch.zeros(1, 1, 8), layout, layout, implementation="triton")
