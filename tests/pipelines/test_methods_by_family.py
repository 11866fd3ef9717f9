"""Every method on every family: the table of the README."""

import re
from pathlib import Path

import pytest
import torch
from families import FAMILIES, NO_DENSE

import fastdit

SMALL = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0, "schedule": NO_DENSE}
ADAPTIVE = fastdit.AdaptiveConfig(density=0.4, **SMALL)
CONFIGS = {
    "adaptive": ADAPTIVE,
    "pyramid": fastdit.PyramidConfig(density=0.4, num_levels=2, **SMALL),
    "static": fastdit.StaticConfig(pattern="skip", order="raster", **{**SMALL, "q_tile": 4, "kv_tile": 2}),
    "cached": fastdit.CachedConfig(source=ADAPTIVE, refresh_every=5),
    "mixed": fastdit.MixedConfig(heads={0: "dense"}, default=ADAPTIVE),
}
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def stock(request):
    """A family, a pipeline of it, and its dense latents."""
    pipe = request.param.build()
    return request.param, pipe, request.param.run(pipe)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_method_runs_sparse(stock, method):
    family, pipe, dense = stock
    with fastdit.enable(pipe, CONFIGS[method]) as session:
        # Of two transformers the first runs a single step of four, so that masks are reused in the second.
        sparse = family.run(pipe, steps=4 if method == "cached" else 2)
    assert torch.isfinite(sparse).all()
    assert sparse.shape == dense.shape
    assert method == "cached" or not torch.equal(sparse, dense)
    assert 0 < session.stats.density() < 1
    assert (session.stats.mask_reuse() is not None) == (method == "cached")
    if method == "cached":
        assert session.stats.mask_reuse()["reused"] > 0


def test_the_readme_lists_these_methods_and_families():
    [heading] = re.findall(r"^\| family \|(.*)\|$", README.read_text(), re.M)
    assert [name.strip() for name in heading.split("|")][1:] == list(CONFIGS)
    rows = re.findall(r"^\| (.+?) \|.*(?:\| tested ){5}\|$", README.read_text(), re.M)
    assert len(rows) == 6
    for family in FAMILIES:
        assert any(family.title.startswith(row.split(" ")[0].split(",")[0]) for row in rows), family.title
