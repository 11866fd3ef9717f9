"""Pooling keys and values into the pyramid buffer, all levels in one pass."""

from __future__ import annotations

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import pool_pyramid


def pool_key_value(
    key: torch.Tensor, value: torch.Tensor, layout: TileLayout, *, implementation: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pyramid buffers of keys and values: row `g` of level `l` is the mean of tokens `g 2^l ... (g+1) 2^l - 1`.

    Same result as `pool_pyramid` on each, with one read of the input: sums in fp32 (fp64 for fp64 input), a ragged
    last run divided by its true number of members, padding rows zero.

    Args:
        key: `[B, H, S, D]` in tile order, any strides, `S = layout.length`.
        value: Like `key`; its own strides.
        layout: Segments, tile size and number of levels.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        Two contiguous `[B, H, layout.total_tiles * tile, D]` in the dtype of the inputs.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if key.shape != value.shape or key.dtype != value.dtype or key.device != value.device:
        raise InvalidInputError(
            f"key is {key.dtype} {tuple(key.shape)} on {key.device}, value {value.dtype} {tuple(value.shape)} on "
            f"{value.device}: both must agree"
        )
    if key.ndim != 4 or key.shape[2] != layout.length:
        raise InvalidInputError(f"key is {tuple(key.shape)}: accepted is [B, H, {layout.length}, D]")
    pooled: tuple[torch.Tensor, torch.Tensor] = _pool_key_value(
        key, value, list(layout.segments), layout.tile, layout.num_levels, implementation
    )
    return pooled


@torch.library.custom_op("fastdit::pool_key_value", mutates_args=())
def _pool_key_value(
    key: torch.Tensor, value: torch.Tensor, segments: list[int], tile: int, num_levels: int, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    layout = TileLayout(tuple(segments), tile, num_levels)
    if runs_triton(implementation, key):
        from fastdit_kernels import triton_pooling

        return triton_pooling.pool_key_value(key, value, layout)
    return _own_memory(pool_pyramid(key, layout), key), _own_memory(pool_pyramid(value, layout), value)


@_pool_key_value.register_fake
def _(
    key: torch.Tensor, value: torch.Tensor, segments: list[int], tile: int, num_levels: int, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = TileLayout(tuple(segments), tile, num_levels).total_tiles * tile
    shape = (key.shape[0], key.shape[1], rows, key.shape[3])
    return key.new_empty(shape), value.new_empty(shape)


def _own_memory(result: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """An operator may not return its input, which an exact one-level layout would."""
    return result.clone() if result.data_ptr() == source.data_ptr() else result
