"""The operators around attention compile for every card, through the launch that users get; no GPU needed."""

import pytest
import torch
import triton
from binaries import MATRIX_INSTRUCTION, describe
from golden_figures import compare
from stub_driver import MAX_SHARED_MEMORY, StubDriver
from triton_operators import MODULES

from fastdit_kernels import (
    TileLayout,
    triton_mass,
    triton_merge,
    triton_node_errors,
    triton_pooling,
    triton_scores,
    triton_selection,
    triton_token_moves,
)

LAYOUT = TileLayout((4 * 64 - 3, 20), 64, 7)
CARDS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
IN_CI = {
    ("sm_80", "bfloat16", 128),
    ("sm_90", "bfloat16", 128),
    ("sm_90", "float32", 128),
    ("sm_120", "bfloat16", 128),
    ("sm_120", "float32", 32),
    ("gfx942", "bfloat16", 128),
}
ROWS = [
    (card, dtype, dim) for card in CARDS for dtype in ("bfloat16", "float16", "float32") for dim in (32, 64, 96, 128)
]


def pytest_generate_tests(metafunc):
    if "card" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-rows")
        rows = [row for row in ROWS if every or row in IN_CI]
        metafunc.parametrize(("card", "dtype", "head_dim"), rows, ids=["-".join(map(str, row)) for row in rows])


def kernels():
    return [
        value
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith("_kernel") and isinstance(value, triton.JITFunction)
    ]


def pool(x):
    triton_pooling.pool_key_value(x, x, LAYOUT)


def tile_means(x):
    triton_scores.tile_means(x, LAYOUT)


def move(x):
    order = torch.arange(LAYOUT.length)
    buffer = triton_token_moves.gather_to_tiles(x, order, LAYOUT)
    triton_token_moves.scatter_from_tiles(buffer, order, LAYOUT)


def select(x):
    for tiles in (600, 1200, 4700):  # the key tiles of 38k, 77k and 300k tokens: three widths of the program
        scores = torch.zeros(1, 2, 3, tiles)
        forced = torch.zeros(3, tiles, dtype=torch.bool).expand(1, 2, -1, -1)
        triton_selection.select_tiles(scores, forced, 0.9, 4, 40, 64)
        triton_selection.select_tiles(scores, None, None, 4, 40, 64)


def merge(x):
    lse = torch.zeros(x.shape[:3])
    triton_merge.merge_attention(x, lse, x, lse)


def mass(x):
    x = x[:, :, :256]
    bias = torch.zeros(x.shape[2])
    lse = triton_mass.row_lse(x, x, bias, 0.1)
    triton_mass.sum_mass(x, x, bias, lse, 128, 64, 0.1)


def sampled_mass(x):
    x = x[:, :, :256]
    triton_mass.sum_mass(x, x, torch.zeros(x.shape[2]), torch.zeros(x.shape[:3]), 4, 1, 0.1)


def row_mass(x):
    """As `first_order` samples it."""
    x = x[:, :, :256]
    triton_mass.sum_mass(x, x, torch.zeros(x.shape[2]), torch.zeros(x.shape[:3]), 1, 64, 0.1)


def node_errors(x):
    layout = TileLayout(LAYOUT.segments, 64, 6)
    triton_node_errors.pyramid_errors(
        x[0, :, :36].unflatten(1, (9, 4)), x[0], torch.zeros(2, x.shape[2], 16), layout, 0.1
    )


@pytest.mark.parametrize("operator", [pool, tile_means, move, select, merge, mass, sampled_mass, row_mass, node_errors])
def test_operator(operator, card, dtype, head_dim, tmp_path, monkeypatch, request):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver(card))
    for kernel in kernels():
        kernel.device_caches.clear()
    operator(torch.zeros(1, 2, LAYOUT.length, head_dim, dtype=getattr(torch, dtype)))
    compiled = [
        (kernel.__name__, binary)
        for kernel in kernels()
        for cache in kernel.device_caches.values()
        for binary in cache[0].values()
    ]
    assert compiled
    write = request.config.getoption("--write-golden")
    for number, (name, binary) in enumerate(compiled):
        found = describe(card, binary)
        assert found["shared"] <= MAX_SHARED_MEMORY[card], name
        assert found["scratch"] == 0, f"{name}: spills or local memory"
        assert not found["serialised"], name
        if operator is node_errors:
            assert found["opcodes"][MATRIX_INSTRUCTION.get(card, "HMMA")] > 0, name
        compare(f"{operator.__name__}-{number}-{name}-{card}-{dtype}-{head_dim}", found, write)


def test_a_segment_of_one_token_compiles(tmp_path, monkeypatch):
    """Triton makes an argument of 1 a number, which has no methods."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver("sm_90"))
    for kernel in kernels():
        kernel.device_caches.clear()
    layout = TileLayout((1, 20), 64, 2)
    x = torch.zeros(1, 1, layout.length, 64)
    triton_pooling.pool_key_value(x, x, layout)
    level_0 = TileLayout(layout.segments, 64)
    triton_scores.tile_means(x, level_0)
    triton_token_moves.gather_to_tiles(x, torch.arange(layout.length), level_0)


def test_bounds_and_list_sizes_share_a_compiled_kernel(tmp_path, monkeypatch):
    """They differ from layer to layer and from method to method."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver("sm_90"))
    for kernel in kernels():
        kernel.device_caches.clear()
    for min_tiles, max_tiles in ((0, 1), (1, 16), (16, 17), (3, 5)):
        triton_selection.select_tiles(torch.zeros(1, 2, 3, 24), None, 0.9, min_tiles, max_tiles, 24)
    (cache,) = triton_selection.select_kernel.device_caches.values()
    assert len(cache[0]) == 1
