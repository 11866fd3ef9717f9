"""From scores of tile pairs to the list of tiles each query tile keeps: top-k, or top-p with floor and cap."""

from __future__ import annotations

import math

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.block_mask import BlockMask
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.tile_layout import TileLayout

# One program holds a whole row of scores in registers.
MAX_TRITON_TILES = 8192


def select_tiles(
    scores: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    max_tiles: int,
    min_tiles: int = 0,
    top_p: float | None = None,
    forced: torch.Tensor | None = None,
    max_forced: int | None = None,
    implementation: str = "auto",
) -> BlockMask:
    """Keep the forced key tiles of each row, then those with the highest scores.

    With `top_p=None` a row keeps exactly `max_tiles` (top-k). With `top_p` it keeps the least number of tiles whose
    scores, forced ones included, sum to at least `top_p`, bounded by `min_tiles` and `max_tiles`. Forced tiles are kept
    even past the bound. Of equal scores the lower tile number wins.

    Args:
        scores: `[B, H, NQ, NK]`. For `top_p` they must be masses: non-negative, a row summing to about one.
        q_layout: Query tiles.
        kv_layout: Key tiles, one level.
        max_tiles: Most tiles per row; for top-k the number of tiles.
        min_tiles: Least tiles per row.
        top_p: Share of the mass to keep.
        forced: bool, broadcastable to `scores`: tiles every row keeps in any case.
        max_forced: No row has more forced tiles; a row that has more all the same loses some. `None` if that is known
            on the device only: the mask then has a slot for every key tile, which costs memory.
        implementation: `"auto"`, `"triton"` (threshold bisection, no sort) or `"torch"` (sort). A named one runs or
            raises.

    Returns:
        A mask whose rows list tiles in ascending order; unused slots are 0.

    Raises:
        InvalidInputError: Shapes or bounds do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if kv_layout.num_levels != 1 or tuple(scores.shape[2:]) != (q_layout.num_tiles, kv_layout.num_tiles):
        raise InvalidInputError(
            f"scores are {tuple(scores.shape)}: accepted is [B, H, {q_layout.num_tiles}, {kv_layout.num_tiles}] over "
            f"one level, the key layout has {kv_layout.num_levels}"
        )
    if not 0 <= min_tiles <= max_tiles:
        raise InvalidInputError(f"min_tiles={min_tiles} and max_tiles={max_tiles}: give 0 <= min_tiles <= max_tiles")
    if forced is not None:
        if forced.dtype != torch.bool:
            raise InvalidInputError(f"forced is {forced.dtype}: accepted is bool")
        forced = forced.expand(scores.shape)
    indices, counts = _select_tiles(scores, forced, top_p, min_tiles, max_tiles, implementation, max_forced)
    return BlockMask(indices, counts, q_layout, kv_layout)


@torch.library.custom_op("fastdit::select_tiles", mutates_args=())
def _select_tiles(
    scores: torch.Tensor,
    forced: torch.Tensor | None,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
    implementation: str,
    max_forced: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    slots = _slots(scores, forced, max_tiles, max_forced)
    tiles = scores.shape[-1]
    limit = None
    if scores.dtype != torch.float32:
        limit = f"scores are {scores.dtype}, it takes float32"
    elif tiles > MAX_TRITON_TILES:
        limit = f"a row has {tiles} tiles, it takes at most {MAX_TRITON_TILES}"
    if runs_triton(implementation, scores, limit):
        from fastdit_kernels import triton_selection

        return triton_selection.select_tiles(scores, forced, top_p, min_tiles, max_tiles, slots)
    return _select_by_sorting(scores, forced, top_p, min_tiles, max_tiles, slots)


@_select_tiles.register_fake
def _(
    scores: torch.Tensor,
    forced: torch.Tensor | None,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
    implementation: str,
    max_forced: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*scores.shape[:3], _slots(scores, forced, max_tiles, max_forced))
    return scores.new_empty(shape, dtype=torch.int32), scores.new_empty(shape[:3], dtype=torch.int32)


def _slots(scores: torch.Tensor, forced: torch.Tensor | None, max_tiles: int, max_forced: int | None) -> int:
    """Room for the longest row possible."""
    tiles = scores.shape[-1]
    if forced is None:
        return min(max_tiles, tiles)
    return tiles if max_forced is None else min(max(max_tiles, max_forced), tiles)


def _select_by_sorting(
    scores: torch.Tensor,
    forced: torch.Tensor | None,
    top_p: float | None,
    min_tiles: int,
    max_tiles: int,
    slots: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager twin: rank by a stable sort, count, list the kept tiles by prefix sums."""
    tiles = scores.shape[-1]
    lifted = scores if forced is None else scores.masked_fill(forced, math.inf)
    ranked = torch.sort(lifted, dim=-1, descending=True, stable=True).indices
    if top_p is None:
        counts = torch.full(scores.shape[:-1], max_tiles, device=scores.device)
    else:
        mass = scores.gather(-1, ranked).cumsum(-1)
        # A tile is needed while the mass before it falls short; the first one always starts from nothing.
        counts = ((mass[..., :-1] < top_p).sum(-1) + (top_p > 0)).clamp(min_tiles, max_tiles)
    if forced is not None:
        counts = torch.maximum(counts, forced.sum(-1))
    counts = counts.clamp(max=slots)
    places = torch.arange(tiles, device=scores.device)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep.scatter_(-1, ranked, places < counts.unsqueeze(-1))
    slot = torch.where(keep, keep.cumsum(-1) - 1, slots)
    # Tiles that are not kept all go to one extra column, which is cut off.
    indices = torch.zeros((*scores.shape[:-1], slots + 1), dtype=torch.int32, device=scores.device)
    indices.scatter_(-1, slot, places.to(torch.int32).expand_as(slot))
    return indices[..., :slots].contiguous(), counts.to(torch.int32)
