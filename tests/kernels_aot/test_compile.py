"""Every row of the configuration table compiles for its card, through the launch that users get; no GPU needed."""

from dataclasses import replace

import pytest
import torch
import triton
from binaries import MATRIX_INSTRUCTION, describe
from golden_figures import compare
from stub_driver import MAX_SHARED_MEMORY, StubDriver

from fastdit_kernels import TileLayout
from fastdit_kernels.implementations import triton_attention, triton_kernels
from fastdit_kernels.implementations.triton_configurations import (
    ARCHITECTURES,
    HEAD_DIMS,
    TABLE,
    TILES,
    TritonConfiguration,
    select_configuration,
)

BAD = TritonConfiguration(128, 128, 4, 3)
ROWS = [
    (architecture, head_dim, dtype, q_tile, kv_tile)
    for architecture in ARCHITECTURES
    for dtype in ("bfloat16", "float16", "float32")
    for head_dim in HEAD_DIMS
    for q_tile in TILES
    for kv_tile in TILES
]
# The rows that video models use, and one fp32 row per card.
IN_CI = {("bfloat16", 128, 128, 64), ("bfloat16", 64, 128, 64), ("float32", 128, 64, 64)}


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-rows")
        rows = [row for row in ROWS if every or (row[2], row[1], row[3], row[4]) in IN_CI]
        metafunc.parametrize("row", rows, ids=["-".join(map(str, row)) for row in rows])


@pytest.fixture
def compile_row(tmp_path, monkeypatch):
    """Launch one row on a card that is not there and return the compiled attention kernel."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def run(architecture, head_dim, dtype, q_tile, kv_tile, ragged=True, configuration=None):
        monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver(architecture))
        for kernel in (triton_kernels.block_sparse_forward, triton_kernels.partition_entries):
            kernel.device_caches.clear()
        layout = TileLayout((4 * kv_tile - 3 * ragged,), kv_tile, 1 + ragged)
        dtype = getattr(torch, dtype)
        query = torch.zeros(1, 2, 2 * q_tile, head_dim, dtype=dtype)
        key = torch.zeros(1, 2, layout.total_tiles * kv_tile, head_dim, dtype=dtype)
        lists = torch.zeros(1, 2, 2, 16, dtype=torch.int32)
        counts = torch.zeros(1, 2, 2, dtype=torch.int32)
        members = layout.row_members() if ragged else None
        arguments = (query, key, key, members, lists, counts, q_tile, kv_tile, 0.1)
        if configuration is None:
            monkeypatch.setattr(triton_attention, "architecture_of", lambda device: architecture)
            triton_attention.attend(*arguments)
        else:
            triton_attention.launch(configuration, architecture, *arguments)
        (cache,) = triton_kernels.block_sparse_forward.device_caches.values()
        (compiled,) = cache[0].values()
        return compiled

    return run


def test_the_table_is_complete():
    assert set(TABLE) == {(row[0], row[1], getattr(torch, row[2]).itemsize, row[3]) for row in ROWS}


def test_row(row, compile_row, request):
    architecture, head_dim, dtype, q_tile, kv_tile = row
    configuration = select_configuration(architecture, head_dim, getattr(torch, dtype), q_tile, kv_tile)
    found = describe(architecture, compile_row(*row))
    assert found["shared"] <= MAX_SHARED_MEMORY[architecture]
    assert found["scratch"] == 0, "spills or local memory"
    # TF32 products have fewer forms than 16-bit ones: where blocks are small, newer cards take those of older ones.
    wanted = {MATRIX_INSTRUCTION.get(architecture, "HMMA")} | ({"HMMA"} if dtype == "float32" else set())
    assert sum(found["opcodes"][name] for name in wanted) > 0
    assert not found["serialised"]
    assert found["specialised"] == configuration.warp_specialize
    assert (found["opcodes"]["UTMALDG"] > 0) == configuration.descriptors
    compare("-".join(map(str, row)), found, request.config.getoption("--write-golden"))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_layouts_without_ragged_tiles(architecture, compile_row):
    found = describe(architecture, compile_row(architecture, 128, "bfloat16", 128, 64, ragged=False))
    assert found["shared"] <= MAX_SHARED_MEMORY[architecture]
    assert found["scratch"] == 0
    assert not found["serialised"]


def test_lists_of_all_sizes_share_a_compiled_kernel(tmp_path, monkeypatch):
    """The slots of a row, and whether heads share their lists, differ from method to method."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver("sm_90"))
    monkeypatch.setattr(triton_attention, "architecture_of", lambda device: "sm_90")
    triton_kernels.block_sparse_forward.device_caches.clear()
    for heads, q_tiles, slots, listed_heads in ((1, 1, 1, 1), (16, 16, 16, 16), (3, 5, 7, 1), (3, 5, 16, 3)):
        query, key = (torch.zeros(1, heads, tiles * 128, 64, dtype=torch.bfloat16) for tiles in (q_tiles, 4))
        lists = torch.zeros(1, listed_heads, q_tiles, slots, dtype=torch.int32).expand(1, heads, -1, -1)
        triton_attention.attend(query, key, key, None, lists, lists[..., 0], 128, 64, 0.1)
    (cache,) = triton_kernels.block_sparse_forward.device_caches.values()
    assert len(cache[0]) == 1


def test_spills_are_noticed(compile_row):
    """The checks can fail: a configuration known to be bad."""
    found = describe("sm_90", compile_row("sm_90", 128, "bfloat16", 128, 128, configuration=BAD))
    assert found["scratch"] > 0
    assert found["serialised"]


def test_missing_specialisation_is_noticed(compile_row):
    plain = replace(select_configuration("sm_90", 128, torch.bfloat16, 128, 64), warp_specialize=False)
    found = describe("sm_90", compile_row("sm_90", 128, "bfloat16", 128, 64, configuration=plain))
    assert not found["specialised"]
