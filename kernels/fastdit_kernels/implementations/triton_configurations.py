"""Block sizes, warps and stages for each kind of GPU: a table, so that no first call is spent on tuning.

What fits a card was found by compiling ahead of time, see `tests/kernels_aot`; none of it has been timed yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch

HEAD_DIMS = (32, 64, 96, 128)
TILES = (64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class TritonConfiguration:
    """How the forward kernel is compiled.

    Args:
        block_m: Query rows of a program.
        block_n: Key rows of a step.
        num_warps: Warps of a program before specialisation.
        num_stages: Depth of the software pipeline over key tiles.
        descriptors: Load keys and values through tensor descriptors (TMA).
        warp_specialize: Loads and matrix products in different warps.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    warp_specialize: bool = False


_TWO_BYTES, _FOUR_BYTES = 2, 4
_CAPABILITIES = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90", (10, 0): "sm_100"}
_CAPABILITIES |= {(10, 3): "sm_100", (12, 0): "sm_120"}
# (architecture, bytes of an element, query tile) -> configuration, the same for every head_dim.
_BY_TILE = {
    ("sm_80", _TWO_BYTES, 128): TritonConfiguration(128, 64, 8, 3),
    ("sm_80", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 3),
    ("sm_86", _TWO_BYTES, 128): TritonConfiguration(128, 32, 8, 3),
    ("sm_86", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 3),
    ("sm_89", _TWO_BYTES, 128): TritonConfiguration(128, 64, 8, 3),
    ("sm_89", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 3),
    ("sm_90", _TWO_BYTES, 128): TritonConfiguration(128, 128, 4, 2, descriptors=True, warp_specialize=True),
    ("sm_90", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 2, descriptors=True),
    ("sm_100", _TWO_BYTES, 128): TritonConfiguration(128, 64, 8, 3, descriptors=True),
    ("sm_100", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 3, descriptors=True),
    ("sm_120", _TWO_BYTES, 128): TritonConfiguration(128, 32, 8, 3),
    ("sm_120", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 3),
    ("gfx942", _TWO_BYTES, 128): TritonConfiguration(128, 64, 4, 2),
    ("gfx942", _TWO_BYTES, 64): TritonConfiguration(64, 64, 4, 2),
}
# Three TF32 products per dot need many registers: larger blocks spill at head_dim 128.
_FLOAT32 = TritonConfiguration(32, 32, 4, 1)
_FLOAT32_AMD = TritonConfiguration(64, 32, 8, 2)
# (architecture, head_dim, bytes of an element): cases in which the general choice spills.
_BY_HEAD_DIM = {("sm_90", 32, _FOUR_BYTES): TritonConfiguration(64, 32, 4, 2)}
ARCHITECTURES = tuple(dict.fromkeys(architecture for architecture, _, _ in _BY_TILE))


def _choose(architecture: str, head_dim: int, size: int, q_tile: int) -> TritonConfiguration:
    float32 = _FLOAT32_AMD if architecture.startswith("gfx") else _FLOAT32
    return _BY_HEAD_DIM.get((architecture, head_dim, size)) or _BY_TILE.get((architecture, size, q_tile), float32)


TABLE = {key: _choose(*key) for key in product(ARCHITECTURES, HEAD_DIMS, (_TWO_BYTES, _FOUR_BYTES), TILES)}
# The interpreter ignores warps and stages.
_INTERPRETER = TritonConfiguration(128, 64, 4, 1)


def architecture_of(device: torch.device) -> str | None:
    """The row of the table for a device: `"sm_90"`, `"gfx942"`, `"interpreter"` for a CPU; `None` if there is none."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        name: str = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in ARCHITECTURES else None
    return _CAPABILITIES.get(torch.cuda.get_device_capability(device))


def select_configuration(
    architecture: str, head_dim: int, dtype: torch.dtype, q_tile: int, kv_tile: int
) -> TritonConfiguration:
    """The table's entry, with its blocks cut to the tiles of the mask."""
    key = (architecture, head_dim, dtype.itemsize, q_tile)
    found = _INTERPRETER if architecture == "interpreter" else TABLE[key]
    return replace(found, block_m=min(found.block_m, q_tile), block_n=min(found.block_n, kv_tile))


def unsupported(head_dim: int, tiles: tuple[int, int] | None) -> str | None:
    """Why the kernel cannot take such shapes; `None` if it can."""
    if head_dim not in HEAD_DIMS:
        return f"head_dim {head_dim} is not supported: the Triton kernel takes {HEAD_DIMS}"
    if tiles is not None and not set(tiles) <= set(TILES):
        return f"tiles of {tiles[0]} query and {tiles[1]} key rows are not supported: the Triton kernel takes {TILES}"
    return None
