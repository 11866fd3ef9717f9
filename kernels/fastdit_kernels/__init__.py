"""Block-sparse and pyramid-pooled attention on tensors: masks, tile layouts and implementations."""

from fastdit_kernels.attention import block_sparse_attention
from fastdit_kernels.block_mask import BlockMask
from fastdit_kernels.dispatch import available_implementations
from fastdit_kernels.errors import FastDitError, InvalidInputError, KernelUnavailableError
from fastdit_kernels.mass import block_mass
from fastdit_kernels.merge import merge_attention
from fastdit_kernels.node_errors import pyramid_errors
from fastdit_kernels.pooling import pool_key_value
from fastdit_kernels.scores import sampled_mass, stratified_rows, tile_means, tile_scores
from fastdit_kernels.selection import select_tiles
from fastdit_kernels.tile_layout import TileLayout
from fastdit_kernels.tiles import (
    gather_tokens,
    invert_order,
    pad_to_tiles,
    pool_pyramid,
    scatter_tokens,
    unpad_from_tiles,
)
from fastdit_kernels.token_moves import gather_to_tiles, scatter_from_tiles

__all__ = [
    "BlockMask",
    "FastDitError",
    "InvalidInputError",
    "KernelUnavailableError",
    "TileLayout",
    "available_implementations",
    "block_mass",
    "block_sparse_attention",
    "gather_to_tiles",
    "gather_tokens",
    "invert_order",
    "merge_attention",
    "pad_to_tiles",
    "pool_key_value",
    "pool_pyramid",
    "pyramid_errors",
    "sampled_mass",
    "scatter_from_tiles",
    "scatter_tokens",
    "select_tiles",
    "stratified_rows",
    "tile_means",
    "tile_scores",
    "unpad_from_tiles",
]
