"""Selection by the exact softmax mass of every tile pair, from a dense pass (AdaSpa 2502.21079, SparseD 2509.24014).

The dense pass gives the log-sum-exp of every row and, at no further cost, the dense output. A second pass over the
scores sums `e^(score - lse)` tile by tile. Video and text keys are ranked apart, so that neither starves the other.
"""

from __future__ import annotations

import torch

from fastdit.selectors.own_tiles import most_own_tiles, own_tiles
from fastdit_kernels import BlockMask, TileLayout, block_mass, block_sparse_attention, select_tiles


def dense_pass(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention and the mass of its tile pairs.

    Args:
        query: `[B, H, S, D]` in tile order, after norms and RoPE.
        key: `[B, H, S, D]`, likewise.
        value: `[B, H, S, D]` in tile order.
        q_layout: Query tiles.
        kv_layout: Key tiles, one level.
        implementation: Kernel of the dense pass.

    Returns:
        Output `[B, H, S, D]`, and the mass `[B, H, NQ, NK]`, mean over the rows of a query tile, fp32 or fp64.
    """
    full = BlockMask.full(q_layout, kv_layout, query.device)
    out, lse = block_sparse_attention(query, key, value, full, return_lse=True, implementation=implementation)
    return out, block_mass(query, key, lse, q_layout, kv_layout)


def select(
    mass: torch.Tensor,
    q_layout: TileLayout,
    kv_layout: TileLayout,
    *,
    top_p: float | None,
    min_density: float,
    max_density: float,
    text_density: float = 1.0,
    kept_length: int = 0,
) -> BlockMask:
    """Keep the heaviest key tiles of each row, with a budget for video keys and another one for text keys.

    Own tiles are always kept; queries of the second segment (text, and dense frames) keep everything.

    Args:
        mass: `[B, H, NQ, NK]`, as `dense_pass` gives it.
        q_layout: Query tiles over `grid.query_segments`.
        kv_layout: Key tiles over `grid.key_segments`, one level.
        top_p: Share of the mass on video keys to keep per row; `None` keeps `max_density` of them.
        min_density: Least share of video tiles per row.
        max_density: Largest share of video tiles per row.
        text_density: Share of text tiles per row; at least one is kept.
        kept_length: Tokens of kept frames at the start of the second key segment; their tiles are always kept.

    Returns:
        A mask whose rows list tiles in ascending order.
    """
    video_q, video = q_layout.segment_tiles(0)[0], kv_layout.segment_tiles(0)[0]
    budget = max(1, round(max_density * video))
    # Text queries keep everything in the end, and need no room before.
    own = own_tiles(q_layout, kv_layout, mass.device)[:, :video]
    own[video_q:] = False
    queries, keys = (TileLayout(layout.segments[:1], layout.tile) for layout in (q_layout, kv_layout))
    part = mass[..., :video]
    kept = select_tiles(
        part / part.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny),
        q_layout,
        keys,
        top_p=top_p,
        min_tiles=max(1, round(min_density * video)),
        max_tiles=budget,
        forced=own,
        max_forced=most_own_tiles(queries, keys),
    )
    columns, slots = [kept.to_dense()], kept.indices.shape[3]
    if kv_layout.num_tiles > video:
        text = TileLayout(kv_layout.segments[1:], kv_layout.tile)
        kept_tiles = -(-kept_length // text.tile)
        number = min(text.num_tiles, kept_tiles + max(1, round(text_density * (text.num_tiles - kept_tiles))))
        kept_first = torch.arange(text.num_tiles, device=mass.device) < kept_tiles
        scores = mass[..., video:].contiguous()
        chosen = select_tiles(scores, q_layout, text, max_tiles=number, forced=kept_first, max_forced=kept_tiles)
        columns.append(chosen.to_dense())
        slots += number
    keep = torch.cat(columns, -1)
    keep[:, :, video_q:] = True
    return BlockMask.from_dense(
        keep,
        q_len=q_layout.segments,
        kv_len=kv_layout.segments,
        q_tile=q_layout.tile,
        kv_tile=kv_layout.tile,
        max_tiles=slots if video_q == q_layout.num_tiles else None,
    )
