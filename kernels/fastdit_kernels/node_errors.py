"""What using a tile of a pooling level, or dropping it, costs sampled query rows; formulas in `node_statistics`."""

from __future__ import annotations

import math

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.node_keys import all_keys, project_values
from fastdit_kernels.node_statistics import all_errors
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import wide_dtype

# Bytes of scores that the eager twin works on at once.
WORKSPACE_BYTES = 4 << 20
TRITON_TILES = (16, 32, 64, 128)
MAX_TRITON_SAMPLES = 64
MAX_TRITON_DIM = 256


def pyramid_errors(
    rows: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    *,
    scale: float | None = None,
    workspace: int = WORKSPACE_BYTES,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimated errors of the output if a node is used in place of its tokens, and if it is dropped.

    A node is a tile of a level. With `F` and `m` the output and softmax mass that its tokens add to a row, `P` and `u`
    what they add pooled, and `o` the output of the row: `use = (|P - F| + |u - m| |o|) / 2` and
    `drop = (|F| + m |o|) / 2`, means over the rows of a query tile. Values are projected to 15 random dimensions first.

    Args:
        rows: Sampled queries of `t` tiles, `[G, t, samples, D]`.
        key: `[G, S, D]` in tile order.
        value: Likewise, of any width.
        layout: Tiles and levels of the keys. The first segment has nodes, all others are seen by every row.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        workspace: Bytes of scores that the eager twin works on at once; the kernel writes none.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        `use` and `drop` `[G, t, n]`, fp32 (fp64 for fp64 input): the nodes of level 0, for which `use` is 0, then those
        of level 1, and so on.

    Raises:
        InvalidInputError: Shapes or dtypes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    same_heads = rows.ndim == 4 and key.ndim == value.ndim == 3 and len(rows) == len(key) == len(value)
    if not same_heads or rows.shape[3] != key.shape[2] or {key.shape[1], value.shape[1]} != {layout.length}:
        raise InvalidInputError(
            f"rows {tuple(rows.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}: accepted are "
            f"[G, t, samples, D], [G, {layout.length}, D] and [G, {layout.length}, any]"
        )
    if not rows.dtype == key.dtype == value.dtype:
        raise InvalidInputError(f"rows are {rows.dtype}, key {key.dtype}, value {value.dtype}: give one dtype")
    errors: tuple[torch.Tensor, torch.Tensor] = _pyramid_errors(
        rows,
        key,
        project_values(value),
        list(layout.segments),
        layout.tile,
        layout.num_levels,
        1 / math.sqrt(rows.shape[3]) if scale is None else scale,
        workspace,
        implementation,
    )
    return errors


@torch.library.custom_op("fastdit::pyramid_errors", mutates_args=())
def _pyramid_errors(
    rows: torch.Tensor,
    key: torch.Tensor,
    projected: torch.Tensor,
    segments: list[int],
    tile: int,
    num_levels: int,
    scale: float,
    workspace: int,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    layout = TileLayout(tuple(segments), tile, num_levels)
    if runs_triton(implementation, key, _limit(layout, rows.shape[2], rows.shape[3])):
        from fastdit_kernels import triton_node_errors

        return triton_node_errors.pyramid_errors(rows, key, projected, layout, scale)
    return all_errors(rows, all_keys(key, projected, layout), scale, workspace)


@_pyramid_errors.register_fake
def _(
    rows: torch.Tensor,
    key: torch.Tensor,
    projected: torch.Tensor,
    segments: list[int],
    tile: int,
    num_levels: int,
    scale: float,
    workspace: int,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    video = TileLayout((segments[0],), tile, num_levels)
    shape = (*rows.shape[:2], video.total_tiles)
    use, drop = (key.new_empty(shape, dtype=wide_dtype(key.dtype)) for _ in range(2))
    return use, drop


def _limit(layout: TileLayout, samples: int, dim: int) -> str | None:
    """Why the kernel cannot take these shapes, if it cannot."""
    run = 1 << (layout.num_levels - 1)
    if layout.tile not in TRITON_TILES or run > layout.tile:
        return (
            f"tiles of {layout.tile} rows and runs of {run} tokens are given, it takes {TRITON_TILES} and runs within"
        )
    if samples > MAX_TRITON_SAMPLES or dim > MAX_TRITON_DIM:
        return (
            f"{samples} rows of {dim} dimensions are given, it takes {MAX_TRITON_SAMPLES} of {MAX_TRITON_DIM} at most"
        )
    return None
