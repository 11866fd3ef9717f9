"""What every tile of every pooling level would contribute to sampled query rows, and what using or dropping it costs.

For a sampled row with log-sum-exp `lse` and output `o`, a node (a tile of a level) has the fine contribution
`F = sum e^(s - lse) v` over its tokens with mass `m`, and the pooled one `P = sum e^(s_g + ln n_g - lse) v_g` over its
groups with mass `u`. Errors are means over the sampled rows of a query tile:

    use = mean(|P - F| + |u - m| |o|) / 2    (0 at level 0),    drop = mean(|F| + m |o|) / 2

The first-order form `|F - m o|` of a drop is not used: a node with nearly all of the mass would look free.

The score of a pooled key is the mean of its members' scores, and `n_g v_g` the sum of their values. So all levels come
from one product of rows and keys, and neither keys nor values are pooled at full width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from fastdit_kernels.node_keys import PyramidKeys, pair_means, pair_sums
from fastdit_kernels.tile_layout import TileLayout

# Pooled weights are at most one when all keys are seen; with sampled keys a missed peak must not overflow.
MAX_LOG_WEIGHT = 20.0


def node_errors(rows: torch.Tensor, keys: PyramidKeys, samples: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of using and of dropping every node, for some query tiles.

    Args:
        rows: Sampled queries, the first ones of all `t` tiles, then the second ones, ...: `[G, samples * t, D]`.
        keys: See `PyramidKeys`.
        samples: Rows per query tile.
        scale: Factor on the scores.

    Returns:
        `use` and `drop`: `[G, n, t]`, the nodes of level 0, then those of level 1, and so on.
    """
    # All levels lie in one buffer: on short sequences the number of calls counts, not their size.
    rows, tiles = (rows * scale).mT, keys.layout.num_tiles
    scores, text_scores, peak = _scores(rows, keys)
    pooled_scores = _pooled_scores(scores, rows, peak, keys)
    fine = _all_levels(_weighted(scores, keys.fine_value), keys.layout)
    total = fine[:, :tiles].sum(1)
    if text_scores is not None and keys.text_value is not None:
        total += keys.text_value.mT @ text_scores.exp_()
    mass = total[:, -1:]
    size = torch.linalg.vector_norm(total[:, :-1] / mass, dim=1, keepdim=True)
    drop = _error(fine, size, mass, samples)
    use = torch.zeros_like(drop)
    if pooled_scores is not None:
        change = _weighted(pooled_scores, keys.pooled_value).sub_(fine[:, tiles:])
        use[:, tiles:] = _error(change, size, mass, samples)
    return use, drop


def tile_mass(rows: torch.Tensor, keys: PyramidKeys, samples: int, scale: float) -> torch.Tensor:
    """Softmax mass of every tile of level 0, mean over the rows of a query tile: `[G, n, t]`.

    Args:
        rows: As in `node_errors`.
        keys: See `PyramidKeys`.
        samples: Rows per query tile.
        scale: Factor on the scores.
    """
    scores, text_scores, _ = _scores((rows * scale).mT, keys)
    mass = _weighted(scores, keys.fine_value[..., -1:]).squeeze(2)
    total = mass.sum(1, keepdim=True)
    if text_scores is not None:
        total += text_scores.exp_().sum(1, keepdim=True)
    mean: torch.Tensor = (mass / total).unflatten(2, (samples, -1)).mean(2)
    return mean


def all_errors(
    rows: torch.Tensor, keys: PyramidKeys, scale: float, workspace: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of using and of dropping every node, of all query tiles, `[G, t, n]`.

    Args:
        rows: Sampled queries `[G, t, samples, D]`.
        keys: See `PyramidKeys`.
        scale: Factor on the scores.
        workspace: Bytes of scores worked on at once.
    """
    nodes = sum(keys.layout.level_tiles(level) for level in range(keys.layout.num_levels))
    use, drop = (keys.fine_key.new_empty(*rows.shape[:2], nodes) for _ in range(2))
    for heads, some, chunk in _chunks(rows, keys, workspace):
        errors = node_errors(chunk, keys.of_heads(heads), rows.shape[2], scale)
        for target, part in zip((use, drop), errors, strict=True):
            target[heads, some] = part.transpose(1, 2)
    return use, drop


def all_masses(rows: torch.Tensor, keys: PyramidKeys, scale: float, workspace: int) -> torch.Tensor:
    """Attention mass of the tiles of level 0, `[G, t, n]`; arguments as in `all_errors`."""
    mass = keys.fine_key.new_empty(*rows.shape[:2], keys.layout.num_tiles)
    for heads, some, chunk in _chunks(rows, keys, workspace):
        mass[heads, some] = tile_mass(chunk, keys.of_heads(heads), rows.shape[2], scale).transpose(1, 2)
    return mass


def _chunks(rows: torch.Tensor, keys: PyramidKeys, workspace: int) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Some heads, some query tiles of theirs and their rows as `node_errors` takes them; few enough for the cache."""
    groups, tiles, samples, _ = rows.shape
    room = max(1, workspace // (keys.layout.num_tiles * keys.layout.tile * samples * 4))
    tile_step, group_step = min(room, tiles), max(1, room // tiles)
    for first_group in range(0, groups, group_step):
        heads = slice(first_group, min(first_group + group_step, groups))
        for first in range(0, tiles, tile_step):
            some = slice(first, min(first + tile_step, tiles))
            yield heads, some, rows[heads, some].transpose(1, 2).flatten(1, 2).to(keys.fine_key.dtype)


def _scores(rows: torch.Tensor, keys: PyramidKeys) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Scores of rows `[G, D, R]` with video keys `[G, n * r, R]` and text, less the peak `[G, 1, R]`; and the peak."""
    # Keys first: tiles are then contiguous and need no copy.
    scores = keys.fine_key @ rows
    # In two steps: one reduction over so many rows takes three times as long on CPUs.
    peak = scores.unflatten(1, (keys.layout.num_tiles, -1)).amax(1).amax(1, keepdim=True)
    if keys.text_key is None:
        return scores.sub_(peak), None, peak
    text_scores = keys.text_key @ rows
    peak = torch.maximum(peak, text_scores.amax(1, keepdim=True))
    return scores.sub_(peak), text_scores.sub_(peak), peak


def _pooled_scores(
    scores: torch.Tensor, rows: torch.Tensor, peak: torch.Tensor, keys: PyramidKeys
) -> torch.Tensor | None:
    """Scores of level 1 and above, one after the other, less the peak, from those of the tokens.

    `rows` is `[G, D, R]`; `None` if there is level 0 alone.
    """
    layout = keys.layout
    if layout.num_levels == 1:
        return None
    counts = [layout.level_tiles(level) * layout.tile for level in range(1, layout.num_levels)]
    pooled = scores.new_empty(len(scores), sum(counts), scores.shape[2])
    parts = pooled.split(counts, 1)
    if keys.pooled_key is None:
        pair_means(scores, layout, 0, parts[0])
    else:
        parts[0].copy_((keys.pooled_key @ rows).sub_(peak).clamp_(max=MAX_LOG_WEIGHT))
    for level in range(1, layout.num_levels - 1):
        pair_means(parts[level - 1], layout, level, parts[level])
    return pooled


def _weighted(scores: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Sums of `e^score value` over every tile, `[G, n, P + 1, R]`; overwrites `scores`."""
    added: torch.Tensor = value.mT @ scores.exp_().unflatten(1, value.shape[1:3])
    return added


def _all_levels(x: torch.Tensor, layout: TileLayout) -> torch.Tensor:
    """Sums over the level-0 nodes under every node, level by level, from `[G, n, P + 1, R]`."""
    if layout.num_levels == 1:
        return x
    counts = [layout.level_tiles(level) for level in range(layout.num_levels)]
    sums = x.new_empty(len(x), sum(counts), *x.shape[2:])
    parts = sums.split(counts, 1)
    parts[0].copy_(x)
    for lower, upper in pairwise(parts):
        pair_sums(lower, upper)
    return sums


def _error(change: torch.Tensor, size: torch.Tensor, mass: torch.Tensor, samples: int) -> torch.Tensor:
    """`(|change of the output| + |change of the mass| size) / 2`, mean over the rows of a query tile: `[G, n, t]`."""
    # Some 20 times faster than a vector norm, which is slow over a dimension that is not the last.
    norm = change[:, :, :-1].square().sum(2).sqrt_() + change[:, :, -1].abs() * size
    mean: torch.Tensor = (norm / (2 * mass)).unflatten(2, (samples, -1)).mean(2)
    return mean
