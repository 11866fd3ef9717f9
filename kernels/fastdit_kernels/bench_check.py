"""What the bench does before it times anything: the kernel in question against the fp64 reference."""

from __future__ import annotations

import torch

from fastdit_kernels.attention import block_sparse_attention
from fastdit_kernels.block_mask import BlockMask
from fastdit_kernels.errors import FastDitError
from fastdit_kernels.tile_layout import TileLayout

SPREAD = 8.0
# Largest error against fp64, relative to the largest output, for inputs of unit variance.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
CHECK_LENGTH = 1000
CHECK_DENSITY = 0.4
# So few that a row of the check mixes levels: a bias common to a whole row would go unnoticed.
CHECK_LEVELS = 3


class WrongResultError(FastDitError):
    """A kernel disagrees with the reference; its speed means nothing."""


def random_mask(
    shape: tuple[int, int, int, int], tile: int, density: float, uneven: bool, seed: int = 0, kv_tile: int | None = None
) -> BlockMask:
    """Random tiles at a density.

    Args:
        shape: `[B, H, S, D]` of the attention.
        tile: Rows of query tiles.
        density: Mean share of key tiles per row.
        uneven: Rows differ by up to a factor of 8 instead of being equally long.
        seed: Seed of the choice.
        kv_tile: Rows of key tiles, default `tile`.
    """
    batch, heads, length, _ = shape
    kv_tile = kv_tile or tile
    tiles, kv_tiles = -(-length // tile), -(-length // kv_tile)
    generator = torch.Generator().manual_seed(seed)
    share = torch.full((batch, heads, tiles), density)
    if uneven:
        share = SPREAD ** torch.rand(share.shape, generator=generator)
        share *= density / share.mean()
    counts = (share * kv_tiles).round().clamp(1, kv_tiles).long()
    rank = torch.rand((batch, heads, tiles, kv_tiles), generator=generator).argsort(-1).argsort(-1)
    return BlockMask.from_dense(rank < counts.unsqueeze(-1), q_len=length, kv_len=length, q_tile=tile, kv_tile=kv_tile)


def random_pooled_mask(
    shape: tuple[int, int, int, int], tile: int, num_levels: int = CHECK_LEVELS, seed: int = 0
) -> BlockMask:
    """Every run of `2**(num_levels - 1)` key tiles is covered at a random level, or left out.

    Args:
        shape: `[B, H, S, D]` of the attention.
        tile: Rows of query and key tiles.
        num_levels: Pooling levels.
        seed: Seed of the choice.
    """
    batch, heads, length, _ = shape
    layout = TileLayout((length,), tile, num_levels)
    coarsest = num_levels - 1
    size = (batch, heads, -(-length // tile), layout.segment_tiles(coarsest)[0])
    level_of_run = torch.randint(num_levels + 1, size, generator=torch.Generator().manual_seed(seed))
    keep = [
        level_of_run[..., torch.arange(layout.segment_tiles(level)[0]) >> (coarsest - level)] == level
        for level in range(num_levels)
    ]
    return BlockMask.from_dense(
        torch.cat(keep, -1), q_len=length, kv_len=length, q_tile=tile, kv_tile=tile, num_levels=num_levels
    )


def check_kernel(
    implementation: str, head_dim: int, dtype: torch.dtype, uneven: bool, tile: int, device: torch.device
) -> float:
    """Largest relative error against the fp64 reference on a short ragged sequence, exact and with pooled levels.

    Raises:
        WrongResultError: It exceeds what the dtype explains.
    """
    shape = (1, 1, CHECK_LENGTH, head_dim)
    masks = {
        "exact tiles": random_mask(shape, tile, CHECK_DENSITY, uneven),
        "pooled tiles": random_pooled_mask(shape, tile),
    }
    inputs = random_inputs(shape, dtype, device)
    errors = {name: _relative_error(implementation, inputs, mask.to(device)) for name, mask in masks.items()}
    for name, error in errors.items():
        # Not `error > ...`: NaN is wrong as well.
        if not error <= TOLERANCE[dtype]:
            raise WrongResultError(
                f"implementation={implementation!r} is wrong on {name} at head_dim {head_dim} in {dtype}: "
                f"relative error {error:.1e}, accepted is {TOLERANCE[dtype]:.0e}. It is not timed."
            )
    return max(errors.values())


def _relative_error(implementation: str, inputs: list[torch.Tensor], mask: BlockMask) -> float:
    query, key, value = inputs
    out = block_sparse_attention(query, key, value, mask, implementation=implementation).double()
    exact = block_sparse_attention(query.double(), key.double(), value.double(), mask, implementation="reference")
    return ((out - exact).abs().max() / exact.abs().max()).item()


def random_inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Query, key and value `[B, H, S, D]` of unit variance."""
    generator = torch.Generator(device).manual_seed(1)
    return [torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype) for _ in range(3)]
