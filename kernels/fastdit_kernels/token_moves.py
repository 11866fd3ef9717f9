"""Moving tokens between their own order and padded tile buffers in one pass, as operators."""

from __future__ import annotations

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import gather_tokens, pad_to_tiles, scatter_tokens, unpad_from_tiles


def gather_to_tiles(
    x: torch.Tensor, order: torch.Tensor, layout: TileLayout, *, implementation: str = "auto"
) -> torch.Tensor:
    """Tokens in tile order inside a tile buffer: `pad_to_tiles(gather_tokens(x, order), layout)` in one pass.

    Args:
        x: `[B, H, S, D]`, any strides, `S = layout.length`.
        order: Token of each place in tile order, int64 or int32 `[S]`, or `[H, S]` for an order per head.
        layout: Segments and tile size, one level.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        Contiguous `[B, H, layout.num_tiles * tile, D]` in the dtype of `x`; padding rows are zero.

    Raises:
        InvalidInputError: Shapes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    _check(x, order, layout, layout.length)
    buffer: torch.Tensor = _gather_to_tiles(x, order, list(layout.segments), layout.tile, implementation)
    return buffer


def scatter_from_tiles(
    buffer: torch.Tensor,
    order: torch.Tensor,
    layout: TileLayout,
    *,
    token_major: bool = False,
    implementation: str = "auto",
) -> torch.Tensor:
    """Undo `gather_to_tiles`: the token at place `i` of the tile order goes back to `order[i]`, padding is dropped.

    Args:
        buffer: `[B, H, layout.num_tiles * tile, D]`, any strides.
        order: The permutation that was gathered with, `[S]` or `[H, S]`.
        layout: Segments and tile size, one level.
        token_major: Lay the result out as `[B, S, H, D]`, where the heads of a token are joined next.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        `[B, H, S, D]` in the dtype of `buffer`: contiguous, or with `token_major` once dimensions 1 and 2 are swapped.

    Raises:
        InvalidInputError: Shapes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    _check(buffer, order, layout, layout.num_tiles * layout.tile)
    x: torch.Tensor = _scatter_from_tiles(
        buffer, order, list(layout.segments), layout.tile, implementation, token_major
    )
    return x


def _check(x: torch.Tensor, order: torch.Tensor, layout: TileLayout, rows: int) -> None:
    if layout.num_levels != 1:
        raise InvalidInputError(f"the layout has {layout.num_levels} levels: tokens move at level 0 only")
    if x.ndim != 4 or x.shape[2] != rows:
        raise InvalidInputError(f"tokens are {tuple(x.shape)}: accepted is [B, H, {rows}, D] with this layout")
    if tuple(order.shape) not in ((layout.length,), (x.shape[1], layout.length)):
        raise InvalidInputError(
            f"order is {tuple(order.shape)}: accepted are [{layout.length}] and [{x.shape[1]}, {layout.length}]"
        )
    if order.dtype not in (torch.int64, torch.int32) or order.device != x.device:
        raise InvalidInputError(f"order is {order.dtype} on {order.device}: accepted is int64 or int32 on {x.device}")


@torch.library.custom_op("fastdit::gather_to_tiles", mutates_args=())
def _gather_to_tiles(
    x: torch.Tensor, order: torch.Tensor, segments: list[int], tile: int, implementation: str
) -> torch.Tensor:
    layout = TileLayout(tuple(segments), tile)
    if runs_triton(implementation, x):
        from fastdit_kernels import triton_token_moves

        return triton_token_moves.gather_to_tiles(x, order, layout)
    return pad_to_tiles(gather_tokens(x, order.long()), layout)


@_gather_to_tiles.register_fake
def _(x: torch.Tensor, order: torch.Tensor, segments: list[int], tile: int, implementation: str) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[1], TileLayout(tuple(segments), tile).num_tiles * tile, x.shape[3]))


@torch.library.custom_op("fastdit::scatter_from_tiles", mutates_args=())
def _scatter_from_tiles(
    buffer: torch.Tensor,
    order: torch.Tensor,
    segments: list[int],
    tile: int,
    implementation: str,
    token_major: bool = False,
) -> torch.Tensor:
    layout = TileLayout(tuple(segments), tile)
    if runs_triton(implementation, buffer):
        from fastdit_kernels import triton_token_moves

        return triton_token_moves.scatter_from_tiles(buffer, order, layout, token_major)
    x = scatter_tokens(unpad_from_tiles(buffer, layout), order.long())
    return x.transpose(1, 2).contiguous().transpose(1, 2) if token_major else x.contiguous()


@_scatter_from_tiles.register_fake
def _(
    buffer: torch.Tensor,
    order: torch.Tensor,
    segments: list[int],
    tile: int,
    implementation: str,
    token_major: bool = False,
) -> torch.Tensor:
    return empty_tokens(buffer, sum(segments), token_major)


def empty_tokens(buffer: torch.Tensor, length: int, token_major: bool) -> torch.Tensor:
    """Room for `length` tokens of what lies in a buffer, `[B, H, S, D]`; see `scatter_from_tiles`."""
    batch, heads, _, dim = buffer.shape
    if token_major:
        return buffer.new_empty((batch, length, heads, dim)).transpose(1, 2)
    return buffer.new_empty((batch, heads, length, dim))
