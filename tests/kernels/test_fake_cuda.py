"""Every operator as it runs on CUDA, at the shapes of Wan 2.1 14B at 720p, without a GPU: its kernels are not launched.

Nothing may make the host wait for the device; what the compiler is told of an operator must be what it returns; and
grids must be within what CUDA takes.
"""

import contextlib

import pytest
import torch
from fake_cuda import fake_cuda

from fastdit_kernels import (
    BlockMask,
    TileLayout,
    block_mass,
    block_sparse_attention,
    dispatch,
    gather_to_tiles,
    mass,
    merge,
    merge_attention,
    node_errors,
    node_keys,
    ops,
    pool_key_value,
    pooling,
    pyramid_errors,
    sampled_mass,
    scatter_from_tiles,
    scores,
    select_tiles,
    selection,
    tile_means,
    tile_scores,
    token_moves,
)

pytest.importorskip("triton")

from triton_operators import MODULES

from fastdit_kernels.implementations import triton_attention

OPERATORS = {
    "fastdit::block_sparse_attention": (ops, "attend_buffers"),
    "fastdit::block_mass": (mass, "sum_mass"),
    "fastdit::merge_attention": (merge, "_merge_attention"),
    "fastdit::pyramid_errors": (node_errors, "_pyramid_errors"),
    "fastdit::pool_key_value": (pooling, "_pool_key_value"),
    "fastdit::tile_means": (scores, "_tile_means"),
    "fastdit::representative_mass": (scores, "_representative_mass"),
    "fastdit::select_tiles": (selection, "_select_tiles"),
    "fastdit::gather_to_tiles": (token_moves, "_gather_to_tiles"),
    "fastdit::scatter_from_tiles": (token_moves, "_scatter_from_tiles"),
}
BATCH, HEADS, LENGTH, DIM = 2, 40, 75600, 128
Q, KV = TileLayout((LENGTH,), 128), TileLayout((LENGTH,), 64)
PYRAMID = TileLayout((LENGTH - 226, 226), 64, 6)
# CUDA's bounds of a grid.
MAX_GRID = (2**31 - 1, 65535, 65535)


class Kernel:
    """Stands for a Triton kernel: notes its grid and looks at its arguments."""

    def __init__(self, name, launches):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            given = [x for x in (*arguments, *options.values()) if isinstance(x, torch.Tensor)]
            assert {x.device.type for x in given} == {"cuda"}, self.name
            self.launches.append((self.name, grid))

        return launch


class Descriptor:
    @classmethod
    def from_tensor(cls, tensor, block):
        assert tensor.stride(-1) == 1
        assert all(stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:-1])
        assert max(block) <= 256
        return cls()


def described(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [(x.shape, x.dtype, x.device, x.stride()) for x in parts]


@pytest.fixture
def cuda(monkeypatch):
    """A card of type sm_90; `launches`, `waits` of it, and `calls` of operators."""
    launches = []
    for module in (*MODULES, triton_attention):
        for name, value in list(vars(module).items()):
            if type(value).__name__ == "JITFunction" and not name.startswith("_"):
                monkeypatch.setattr(module, name, Kernel(name, launches))
    monkeypatch.setattr(triton_attention, "TensorDescriptor", Descriptor)
    for module in (dispatch, triton_attention):
        monkeypatch.setattr(module, "architecture_of", lambda device: "sm_90")
    for name in ("device", "device_of"):
        monkeypatch.setattr(torch.cuda, name, lambda device: contextlib.nullcontext())
    # Generators on a GPU exist where one does.
    monkeypatch.setattr(
        node_keys, "_projection", lambda dim, dtype, device: torch.empty(dim, 15, dtype=dtype, device=device)
    )
    called = set()
    for full_name, (module, name) in OPERATORS.items():
        operator = getattr(module, name)

        def run(*arguments, operator=operator, full_name=full_name):
            promised = operator(*arguments)
            returned = operator._init_fn(*arguments)
            assert described(returned) == described(promised), full_name
            called.add(full_name)
            return returned

        monkeypatch.setattr(module, name, run)
    with fake_cuda() as watch:
        watch.launches, watch.called = launches, called
        yield watch


def tokens(length=LENGTH, dtype=torch.bfloat16):
    return torch.empty(BATCH, length, HEADS, DIM, dtype=dtype, device="cuda").transpose(1, 2)


def mask_over(layout, slots=200):
    indices = torch.empty(BATCH, HEADS, Q.num_tiles, slots, dtype=torch.int32, device="cuda")
    return BlockMask(indices, torch.empty(indices.shape[:3], dtype=torch.int32, device="cuda"), Q, layout)


def attend():
    x = tokens()
    for layout in (KV, PYRAMID):
        block_sparse_attention(x, x, x, mask_over(layout), return_lse=True)


def mass_of_tiles():
    x = tokens()
    block_mass(x, x, torch.empty(BATCH, HEADS, LENGTH, device="cuda"), Q, KV)


def estimate():
    x = tokens()
    for estimator in ("mean", "sampled"):
        tile_scores(x, x, Q, KV, estimator=estimator)
    sampled_mass(x[:, :, : 4 * Q.num_tiles], x, KV, q_samples=4)
    tile_means(x, Q)


def choose():
    shares = torch.empty(BATCH, HEADS, Q.num_tiles, KV.num_tiles, device="cuda")
    forced = torch.empty(HEADS, Q.num_tiles, KV.num_tiles, dtype=torch.bool, device="cuda")
    for chosen in (forced, None):
        select_tiles(shares, Q, KV, max_tiles=300, top_p=0.9, forced=chosen)


def pool():
    pool_key_value(tokens(), tokens(), PYRAMID)


def merge_two():
    lse = torch.empty(BATCH, HEADS, LENGTH, device="cuda")
    merge_attention(tokens(), lse, tokens(), lse)


def move():
    order = torch.empty(HEADS, LENGTH, dtype=torch.int64, device="cuda")
    for token_major in (False, True):
        scatter_from_tiles(gather_to_tiles(tokens(), order, Q), order, Q, token_major=token_major)


def weigh_nodes():
    rows = torch.empty(HEADS, Q.num_tiles, 4, DIM, dtype=torch.bfloat16, device="cuda")
    x = torch.empty(HEADS, LENGTH, DIM, dtype=torch.bfloat16, device="cuda")
    for layout in (TileLayout((LENGTH,), 64, 6), PYRAMID):
        pyramid_errors(rows, x, x, layout, workspace=1 << 30)


@pytest.mark.parametrize("use", [attend, mass_of_tiles, estimate, choose, pool, merge_two, move, weigh_nodes])
def test_an_operator_neither_waits_nor_breaks_its_promise(cuda, use):
    use()
    assert cuda.waits == {}
    assert cuda.called
    assert cuda.launches
    for name, grid in cuda.launches:
        assert all(0 < size <= limit for size, limit in zip(grid, MAX_GRID, strict=False)), (name, grid)


def test_pooled_keys_come_from_the_pooling_kernel(cuda):
    """Eager pooling reads and writes the tokens some twenty times, in fp32."""
    x = tokens()
    block_sparse_attention(x, x, x, mask_over(PYRAMID))
    names = [name for name, _ in cuda.launches]
    assert names == ["pool_kernel", "pool_kernel", "block_sparse_forward"]


def test_errors_of_nodes_take_little_memory(cuda):
    """Scores of 2,364 rows and 75,600 keys in fp32 would be 715 MB per head, 28.6 GB in all."""
    weigh_nodes()
    assert [name for name, _ in cuda.launches] == ["row_statistics_kernel", "node_errors_kernel"] * 2
    inputs, tables = 2 * HEADS * (LENGTH + 4 * Q.num_tiles) * DIM, 2 * HEADS * Q.num_tiles * 2363 * 4
    # Errors with tiles last and with tiles first, and those that the compiler is promised.
    assert cuda.peak_bytes < inputs + 4 * tables


def test_all_operators_are_here():
    found = {str(name) for name in torch._C._dispatch_get_all_op_names() if str(name).startswith("fastdit::")}
    assert {name for name in found if name.count(".") == 0 and "begin" not in name} - {"fastdit::attend"} == set(
        OPERATORS
    )


def test_a_wait_is_noticed():
    with fake_cuda() as watch:
        torch.arange(3).to(torch.empty(1, device="cuda").device)
        assert list(watch.waits) == ["elsewhere"]
        with pytest.raises(Exception, match="_local_scalar_dense"):
            torch.empty(1, device="cuda").item()
