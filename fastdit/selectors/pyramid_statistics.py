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

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit.selectors.pyramid_keys import PyramidKeys, pair_means

# Pooled weights are at most one when all keys are seen; with sampled keys a missed peak must not overflow.
MAX_LOG_WEIGHT = 20.0


@dataclass(frozen=True)
class Contributions:
    """What nodes add to output and mass of `R` rows, all times the `mass` of the row.

    Args:
        fine: Tiles of level 0, `[G, n, P + 1, R]`.
        pooled: Tiles of level 1 and above, likewise.
        text: What the text adds, `[G, P + 1, R]`; `None` without text.
        mass: Over all keys seen, `[G, 1, R]`.
        output: Output of the rows over all keys seen, `[G, P, R]`.
    """

    fine: torch.Tensor
    pooled: list[torch.Tensor]
    text: torch.Tensor | None
    mass: torch.Tensor
    output: torch.Tensor


def contributions(rows: torch.Tensor, keys: PyramidKeys, scale: float) -> Contributions:
    """What every node adds to some query rows.

    Args:
        rows: `[G, R, D]` in the dtype of `keys`.
        keys: See `pyramid_keys`.
        scale: Factor on the scores.
    """
    rows = (rows * scale).mT
    # Keys first: tiles are then contiguous and need no copy.
    scores = keys.fine_key @ rows
    peak = scores.amax(1, keepdim=True)
    text_scores = None if keys.text_key is None else keys.text_key @ rows
    if text_scores is not None:
        peak = torch.maximum(peak, text_scores.amax(1, keepdim=True))
    scores.sub_(peak)
    pooled_scores = _pooled_scores(scores, rows, peak, keys)
    fine = _weighted(scores, keys.fine_value)
    total = fine.sum(1)
    text = None
    if text_scores is not None and keys.text_value is not None:
        text = keys.text_value.mT @ text_scores.sub_(peak).exp_()
        total += text
    mass = total[:, -1:]
    pooled = [_weighted(part, value) for part, value in zip(pooled_scores, keys.pooled_value, strict=True)]
    return Contributions(fine, pooled, text, mass, total[:, :-1] / mass)


def node_errors(
    rows: torch.Tensor, keys: PyramidKeys, samples: int, scale: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Errors of using and of dropping every node, for some query tiles.

    Args:
        rows: Sampled queries, the first ones of all `t` tiles, then the second ones, ...: `[G, samples * t, D]`.
        keys: See `pyramid_keys`.
        samples: Rows per query tile.
        scale: Factor on the scores.

    Returns:
        `use` and `drop`: per level `[G, n, t]`.
    """
    found = contributions(rows, keys, scale)
    size = torch.linalg.vector_norm(found.output, dim=1, keepdim=True)
    fine = found.fine
    drop = [_error(fine, size, found.mass, samples)]
    use = [torch.zeros_like(drop[0])]
    for pooled in found.pooled:
        fine = _pair_sums(fine)
        use.append(_error(pooled.sub_(fine), size, found.mass, samples))
        drop.append(_error(fine, size, found.mass, samples))
    return use, drop


def tile_mass(rows: torch.Tensor, keys: PyramidKeys, samples: int, scale: float) -> torch.Tensor:
    """Softmax mass of every tile of level 0, mean over the rows of a query tile: `[G, n, t]`.

    Args:
        rows: As in `node_errors`.
        keys: See `pyramid_keys`.
        samples: Rows per query tile.
        scale: Factor on the scores.
    """
    scores = keys.fine_key @ (rows * scale).mT
    peak = scores.amax(1, keepdim=True)
    text = None if keys.text_key is None else keys.text_key @ (rows * scale).mT
    if text is not None:
        peak = torch.maximum(peak, text.amax(1, keepdim=True))
    mass = _weighted(scores.sub_(peak), keys.fine_value[..., -1:]).squeeze(2)
    total = mass.sum(1, keepdim=True)
    if text is not None:
        total = total + text.sub_(peak).exp_().sum(1, keepdim=True)
    mean: torch.Tensor = (mass / total).unflatten(2, (samples, -1)).mean(2)
    return mean


def row_errors(
    rows: torch.Tensor, keys: PyramidKeys, cut: list[torch.Tensor], samples: int, scale: float
) -> torch.Tensor:
    """Relative error `|o - o*| / |o*|` of the output that a cut gives some rows, summed over rows.

    This is the error as attention would make it, with its cancellations and its normalisation, not the sum of bounds
    that a cut is chosen by.

    Args:
        rows: As in `node_errors`.
        keys: See `pyramid_keys`.
        cut: Nodes that are used, per level bool `[G, n, t]`.
        samples: Rows per query tile.
        scale: Factor on the scores.

    Returns:
        `[G]`.
    """
    found = contributions(rows, keys, scale)
    total = torch.zeros_like(found.fine[:, 0]) if found.text is None else found.text
    for keep, contribution in zip(cut, [found.fine, *found.pooled], strict=True):
        total = total + (contribution * keep.repeat(1, 1, samples).unsqueeze(2)).sum(1)
    # A row that keeps no mass at all has output 0, as in attention over nothing.
    estimate = total[:, :-1] / total[:, -1:].clamp_min(torch.finfo(total.dtype).tiny)
    size = found.output.square().sum(1).sqrt().clamp_min(torch.finfo(total.dtype).tiny)
    error: torch.Tensor = ((estimate - found.output).square().sum(1).sqrt() / size).sum(1)
    return error


def _pooled_scores(
    scores: torch.Tensor, rows: torch.Tensor, peak: torch.Tensor, keys: PyramidKeys
) -> list[torch.Tensor]:
    """Scores of level 1 and above, less the peak, from those of the tokens; `rows` is `[G, D, R]`."""
    if keys.layout.num_levels == 1:
        return []
    if keys.pooled_key is None:
        first = pair_means(scores, keys.layout, 0)
    else:
        first = (keys.pooled_key @ rows).sub_(peak).clamp_(max=MAX_LOG_WEIGHT)
    levels = [first]
    for level in range(1, keys.layout.num_levels - 1):
        levels.append(pair_means(levels[-1], keys.layout, level))
    return levels


def _weighted(scores: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Sums of `e^score value` over every tile, `[G, n, P + 1, R]`; overwrites `scores`."""
    added: torch.Tensor = value.mT @ scores.exp_().unflatten(1, value.shape[1:3])
    return added


def _pair_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums of neighbouring nodes `[G, n, P + 1, R]`; an odd last one stays alone."""
    if x.shape[1] % 2:
        x = F.pad(x, (0, 0, 0, 0, 0, 1))
    return x[:, 0::2] + x[:, 1::2]


def _error(change: torch.Tensor, size: torch.Tensor, mass: torch.Tensor, samples: int) -> torch.Tensor:
    """`(|change of the output| + |change of the mass| size) / 2`, mean over the rows of a query tile: `[G, n, t]`."""
    # Some 20 times faster than a vector norm, which is slow over a dimension that is not the last.
    norm = change[:, :, :-1].square().sum(2).sqrt_() + change[:, :, -1].abs() * size
    mean: torch.Tensor = (norm / (2 * mass)).unflatten(2, (samples, -1)).mean(2)
    return mean
