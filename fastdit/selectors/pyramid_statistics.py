"""What using or dropping a node of the pyramid costs, from all keys or from a sample of them."""

from __future__ import annotations

import torch

from fastdit.selectors.pyramid_keys import pyramid_keys
from fastdit_kernels import TileLayout, pyramid_errors
from fastdit_kernels.node_statistics import all_errors, all_masses, node_errors

__all__ = ["estimated_errors", "estimated_masses", "node_errors"]


def estimated_errors(
    rows: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    *,
    kv_samples: int | None,
    scale: float,
    workspace: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Errors of using and of dropping every node, per level `[G, t, n]`; see `fastdit_kernels.pyramid_errors`.

    Args:
        rows: Sampled queries `[G, t, samples, D]`.
        key: `[G, S, D]` in tile order.
        value: Likewise.
        layout: Tiles and levels of the keys; the first segment is the video.
        kv_samples: Tokens seen of each level-0 tile; `None` for all.
        scale: Factor on the scores.
        workspace: Bytes of scores that eager code works on at once.
    """
    if kv_samples is None:
        use, drop = pyramid_errors(rows, key, value, layout, scale=scale, workspace=workspace)
    else:
        # Eager everywhere: scores of a few keys of each tile are as many times smaller than those of all.
        use, drop = all_errors(rows, pyramid_keys(key, value, layout, kv_samples), scale, workspace)
    counts = [layout.segment_tiles(level)[0] for level in range(layout.num_levels)]
    return list(use.split(counts, 2)), list(drop.split(counts, 2))


def estimated_masses(
    rows: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    *,
    kv_samples: int | None,
    scale: float,
    workspace: int,
) -> torch.Tensor:
    """Attention mass of the video tiles of level 0, `[G, t, n]`; arguments as in `estimated_errors`."""
    return all_masses(rows, pyramid_keys(key, value, layout, kv_samples), scale, workspace)
