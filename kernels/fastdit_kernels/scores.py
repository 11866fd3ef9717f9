"""Cheap estimates of the softmax mass of every tile pair."""

from __future__ import annotations

import math
from typing import Literal

import torch

from fastdit_kernels.backends import runs_triton
from fastdit_kernels.errors import InvalidInputError
from fastdit_kernels.mass import MAX_TRITON_TILE, score_chunks
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import pad_to_tiles, wide_dtype


def tile_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    estimator: Literal["mean", "sampled", "antidiagonal"] = "mean",
    q_samples: int = 4,
    kv_samples: int = 4,
    stride: int = 8,
    scale: float | None = None,
    implementation: str = "auto",
) -> torch.Tensor:
    """Estimated share of the softmax mass that each key tile has for each query tile.

    Tiles are replaced by representatives: `p = softmax(scale q . k + ln w)` over all key representatives, summed over
    those of a key tile and averaged over those of a query tile. `w` is the number of tokens a key stands for, with the
    true count of a ragged tile.

    `"mean"`: one representative, the mean of the tile, as in Video-BLADE's ASA and SpargeAttn. It sees no peaks.
    `"sampled"`: `m` tokens, one from the middle of each of `m` equal parts of the tile. A ragged tile is divided the
    same way. Exact when every token of every tile is a sample.
    `"antidiagonal"`: runs of `stride` tokens; the score of two runs is the mean of `q_(stride-1-i) . k_i` over `i`, as
    in XAttention. It sees every row, column and diagonal of a tile, at `1 / stride` of the cost of all scores. A ragged
    tile is stretched to full length by repeating tokens. Its products are made with plain matrix products.

    Args:
        query: `[B, H, Sq, D]` in tile order.
        key: `[B, H, Skv, D]` in tile order.
        q_layout: Query tiles.
        kv_layout: Key tiles, one level.
        estimator: `"mean"`, `"sampled"` or `"antidiagonal"`.
        q_samples: Tokens taken from a query tile by `"sampled"`.
        kv_samples: Tokens taken from a key tile by `"sampled"`.
        stride: Tokens of a run of `"antidiagonal"`, a divisor of both tile sizes.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        `[B, H, NQ, NK]`, fp32 (fp64 for fp64 input); rows sum to one.

    Raises:
        InvalidInputError: Shapes, layouts or settings do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if query.shape[2] != q_layout.length or key.shape[2] != kv_layout.length or kv_layout.num_levels != 1:
        raise InvalidInputError(
            f"query is {tuple(query.shape)}, key {tuple(key.shape)} with {kv_layout.num_levels} levels: accepted are "
            f"[B, H, {q_layout.length}, D] and [B, H, {kv_layout.length}, D] with one level"
        )
    if estimator not in ("mean", "sampled", "antidiagonal") or min(q_samples, kv_samples, stride) < 1:
        raise InvalidInputError(
            f"estimator={estimator!r}, q_samples={q_samples}, kv_samples={kv_samples}, stride={stride}: accepted are "
            "'mean', 'sampled' or 'antidiagonal', and positive numbers"
        )
    tokens = kv_layout.tile_rows(key.device).to(wide_dtype(key.dtype))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if estimator == "antidiagonal":
        q_samples, kv_samples = q_layout.tile // stride, kv_layout.tile // stride
        queries = _folded(query, q_layout, stride).flip(3).flatten(3)
        keys = _folded(key, kv_layout, stride).flatten(3)
        scale /= stride
        runs_triton(implementation, query, "antidiagonal scores have no Triton kernel")
        implementation = "torch"
    elif estimator == "mean":
        q_samples = kv_samples = 1
        queries = tile_means(query, q_layout, implementation=implementation)
        keys = tile_means(key, kv_layout, implementation=implementation)
    else:
        queries = query.index_select(2, stratified_rows(q_layout, q_samples, query.device))
        keys = key.index_select(2, stratified_rows(kv_layout, kv_samples, key.device))
    weight = (tokens / kv_samples).log().repeat_interleave(kv_samples)
    scores: torch.Tensor = _representative_mass(queries, keys, weight, q_samples, kv_samples, scale, implementation)
    return scores


def sampled_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    kv_layout: TileLayout,
    *,
    q_samples: int,
    scale: float | None = None,
    implementation: str = "auto",
) -> torch.Tensor:
    """Exact share of the softmax mass that each key tile has for some query rows, mean over groups of rows.

    Args:
        query: Rows of interest `[B, H, N * q_samples, D]`.
        key: `[B, H, Skv, D]` in tile order.
        kv_layout: Key tiles, one level.
        q_samples: Rows of a group.
        scale: Factor on the scores, default `1 / sqrt(D)`.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        `[B, H, N, NK]`, fp32 (fp64 for fp64 input); rows sum to one.

    Raises:
        InvalidInputError: Shapes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if q_samples < 1 or query.shape[2] % q_samples or key.shape[2] != kv_layout.length or kv_layout.num_levels != 1:
        raise InvalidInputError(
            f"query is {tuple(query.shape)} in groups of {q_samples}, key {tuple(key.shape)} with "
            f"{kv_layout.num_levels} levels: accepted are whole groups and [B, H, {kv_layout.length}, D] with one level"
        )
    members = kv_layout.row_members(key.device).to(wide_dtype(key.dtype))
    mass: torch.Tensor = _representative_mass(
        query,
        pad_to_tiles(key, kv_layout),
        members.log(),
        q_samples,
        kv_layout.tile,
        1 / math.sqrt(query.shape[-1]) if scale is None else scale,
        implementation,
    )
    return mass


def stratified_rows(layout: TileLayout, samples: int, device: torch.device | None = None) -> torch.Tensor:
    """Token in the middle of each of `samples` equal parts of each tile: `first + floor((2 r + 1) n / (2 samples))`.

    A tile of `n < samples` tokens gives some of them several times.

    Args:
        layout: Segments and tile size; level 0 counts.
        samples: Tokens per tile.
        device: Where the result lies.

    Returns:
        int64 `[num_tiles * samples]`, token numbers in ascending order.
    """
    part = 2 * torch.arange(samples, device=device) + 1
    rows = []
    start = 0
    for length, tiles in zip(layout.segments, layout.segment_tiles(0), strict=True):
        first = torch.arange(tiles, device=device).unsqueeze(1) * layout.tile
        rows.append(start + first + (length - first).clamp(max=layout.tile) * part // (2 * samples))
        start += length
    return torch.cat(rows).flatten()


def _folded(x: torch.Tensor, layout: TileLayout, stride: int) -> torch.Tensor:
    """Runs of `stride` tokens, ragged tiles stretched to full length: `[B, H, tokens / stride, stride, D]`."""
    if layout.tile % stride:
        raise InvalidInputError(f"stride={stride} and tiles of {layout.tile} rows: the stride must divide both tiles")
    whole = x if layout.is_exact else x.index_select(2, stratified_rows(layout, layout.tile, x.device))
    runs: torch.Tensor = whole.unflatten(2, (-1, stride))
    return runs


def tile_means(x: torch.Tensor, layout: TileLayout, *, implementation: str = "auto") -> torch.Tensor:
    """Mean token of each tile, padding left out.

    Args:
        x: `[B, H, S, D]` in tile order, any strides.
        layout: Tiles, one level.
        implementation: `"auto"`, `"triton"` or `"torch"`. A named one runs or raises.

    Returns:
        `[B, H, num_tiles, D]` in fp32, or fp64 for fp64 input.

    Raises:
        InvalidInputError: Shapes do not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if x.ndim != 4 or x.shape[2] != layout.length or layout.num_levels != 1:
        raise InvalidInputError(
            f"tokens are {tuple(x.shape)}, the layout has {layout.num_levels} levels: accepted is "
            f"[B, H, {layout.length}, D] and one level"
        )
    means: torch.Tensor = _tile_means(x, list(layout.segments), layout.tile, implementation)
    return means


@torch.library.custom_op("fastdit::tile_means", mutates_args=())
def _tile_means(x: torch.Tensor, segments: list[int], tile: int, implementation: str) -> torch.Tensor:
    layout = TileLayout(tuple(segments), tile)
    if runs_triton(implementation, x):
        from fastdit_kernels import triton_scores

        return triton_scores.tile_means(x, layout)
    sums: torch.Tensor = pad_to_tiles(x, layout).unflatten(2, (-1, tile)).sum(3, dtype=wide_dtype(x.dtype))
    return sums / layout.tile_rows(x.device).view(1, 1, -1, 1)


@_tile_means.register_fake
def _(x: torch.Tensor, segments: list[int], tile: int, implementation: str) -> torch.Tensor:
    shape = (x.shape[0], x.shape[1], TileLayout(tuple(segments), tile).num_tiles, x.shape[3])
    return x.new_empty(shape, dtype=wide_dtype(x.dtype))


@torch.library.custom_op("fastdit::representative_mass", mutates_args=())
def _representative_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    key_bias: torch.Tensor,
    q_samples: int,
    kv_samples: int,
    scale: float,
    implementation: str,
) -> torch.Tensor:
    """`softmax(scale q . k + key_bias)` over all keys, summed per `kv_samples` keys, mean over `q_samples` queries."""
    limit = None
    if max(q_samples, kv_samples) > MAX_TRITON_TILE:
        limit = f"{q_samples} and {kv_samples} samples are asked for, it takes at most {MAX_TRITON_TILE}"
    if runs_triton(implementation, query, limit):
        from fastdit_kernels import triton_mass

        lse = triton_mass.row_lse(query, key, key_bias, scale)
        return triton_mass.sum_mass(query, key, key_bias, lse, q_samples, kv_samples, scale) / q_samples
    shape = (*query.shape[:2], query.shape[2] // q_samples, key.shape[2] // kv_samples)
    mass = query.new_empty(shape, dtype=key_bias.dtype)
    flat = mass.flatten(0, 1)
    for place, scores in score_chunks(query, key, key_bias, q_samples, scale):
        flat[place] = scores.softmax(-1).unflatten(3, (-1, kv_samples)).sum(4).mean(2)
    return mass


@_representative_mass.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    key_bias: torch.Tensor,
    q_samples: int,
    kv_samples: int,
    scale: float,
    implementation: str,
) -> torch.Tensor:
    shape = (*query.shape[:2], query.shape[2] // q_samples, key.shape[2] // kv_samples)
    return query.new_empty(shape, dtype=key_bias.dtype)
