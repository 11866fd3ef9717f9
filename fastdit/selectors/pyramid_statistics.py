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

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fastdit_kernels import TileLayout, stratified_rows

# Pooled weights are at most one when all keys are seen; with sampled keys a missed peak must not overflow.
MAX_LOG_WEIGHT = 20.0
# Norms of value vectors are taken after a random projection to this many dimensions: with the mass they make 16.
VALUE_DIMS = 15


@dataclass(frozen=True)
class PyramidKeys:
    """What sampled rows are compared with.

    Args:
        layout: Tiles and levels of the video alone.
        fine_key: Tokens of the video, all or a sample of each tile, `[G, n * r, D]`; padding repeats the last token.
        fine_value: Their projected values and a one that sums up the mass, times the tokens each stands for (0 on
            padding), `[G, n, r, P + 1]`.
        pooled_key: Means of pairs of tokens, `[G, rows of level 1, D]`; `None` if all tokens are in `fine_key`.
        pooled_value: For level 1 and above, sums of `fine_value` over the members of a row, `[G, n_l, tile, P + 1]`.
        text_key: Text tokens, which every row sees, `[G, T, D]`; `None` without text.
        text_value: Theirs, `[G, T, P + 1]`.
    """

    layout: TileLayout
    fine_key: torch.Tensor
    fine_value: torch.Tensor
    pooled_key: torch.Tensor | None
    pooled_value: tuple[torch.Tensor, ...]
    text_key: torch.Tensor | None
    text_value: torch.Tensor | None

    def of_heads(self, heads: slice) -> PyramidKeys:
        """Those of some heads."""
        return replace(
            self,
            fine_key=self.fine_key[heads],
            fine_value=self.fine_value[heads],
            pooled_key=None if self.pooled_key is None else self.pooled_key[heads],
            pooled_value=tuple(value[heads] for value in self.pooled_value),
            text_key=None if self.text_key is None else self.text_key[heads],
            text_value=None if self.text_value is None else self.text_value[heads],
        )


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


def pyramid_keys(key: torch.Tensor, value: torch.Tensor, layout: TileLayout, kv_samples: int | None) -> PyramidKeys:
    """Prepare keys and values of some heads; the first segment is the video.

    Args:
        key: `[G, S, D]` in tile order.
        value: Likewise.
        layout: Tiles and levels of the keys.
        kv_samples: Tokens seen of each level-0 tile; `None` for all.
    """
    wide = torch.promote_types(key.dtype, torch.float32)
    video = TileLayout(layout.segments[:1], layout.tile, layout.num_levels)
    tiles, padding = video.num_tiles, video.num_tiles * video.tile - video.length
    projected = F.pad(value.to(wide) @ _projection(value.shape[2], wide, value.device), (0, 1), value=1.0)
    values = F.pad(projected[:, : video.length], (0, 0, 0, padding))
    pooled_key = None
    if kv_samples is None:
        fine_key = key[:, : video.length].to(wide)
        if padding:
            fine_key = torch.cat([fine_key, fine_key[:, -1:].expand(-1, padding, -1)], 1)
        fine_value = values.unflatten(1, (tiles, -1))
    else:
        picked = stratified_rows(TileLayout(video.segments, video.tile), kv_samples, key.device)
        weight = video.tile_rows(key.device)[:tiles].to(wide) / kv_samples
        fine_key = key[:, picked].to(wide)
        fine_value = projected[:, picked].unflatten(1, (tiles, -1)) * weight.view(-1, 1, 1)
        if video.num_levels > 1:
            pooled_key = pair_means(key[:, : video.length].to(wide), video, 0)
    text_key = text_value = None
    if layout.length > video.length:
        text_key, text_value = key[:, video.length :].to(wide), projected[:, video.length :]
    pooled_value = _pooled_values(values, video)
    return PyramidKeys(video, fine_key, fine_value, pooled_key, pooled_value, text_key, text_value)


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


def squared_errors(
    rows: torch.Tensor, keys: PyramidKeys, cut: list[torch.Tensor], samples: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed squares of the output error that a cut gives some rows, and of the output itself.

    This is the error as attention would make it, with its cancellations and its normalisation, not the sum of bounds
    that a cut is chosen by.

    Args:
        rows: As in `node_errors`.
        keys: See `pyramid_keys`.
        cut: Nodes that are used, per level bool `[G, n, t]`.
        samples: Rows per query tile.
        scale: Factor on the scores.

    Returns:
        Two `[G]`.
    """
    found = contributions(rows, keys, scale)
    total = torch.zeros_like(found.fine[:, 0]) if found.text is None else found.text
    for keep, contribution in zip(cut, [found.fine, *found.pooled], strict=True):
        total = total + (contribution * keep.repeat(1, 1, samples).unsqueeze(2)).sum(1)
    # A row that keeps no mass at all has output 0, as in attention over nothing.
    estimate = total[:, :-1] / total[:, -1:].clamp_min(torch.finfo(total.dtype).tiny)
    return (estimate - found.output).square().sum((1, 2)), found.output.square().sum((1, 2))


def pair_means(x: torch.Tensor, layout: TileLayout, level: int) -> torch.Tensor:
    """Rows of the next level: means over twice as many tokens.

    Args:
        x: `[G, rows, C]`, means over runs of `2**level` tokens; rows of padding may follow.
        layout: Tiles of one segment.
        level: Level of `x`.

    Returns:
        `[G, rows, C]`, filled up to whole tiles with the last mean.
    """
    rows, run = layout.segment_rows(level)[0], 1 << level
    filled, pairs = -(-rows // 2), rows // 2
    means = x.new_empty(x.shape[0], layout.level_tiles(level + 1) * layout.tile, x.shape[2])
    torch.lerp(x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2], 0.5, out=means[:, :pairs])
    if filled > pairs:
        means[:, pairs] = x[:, rows - 1]
    else:
        last = layout.length - (rows - 1) * run
        means[:, pairs - 1] = torch.lerp(x[:, rows - 2], x[:, rows - 1], last / (run + last))
    means[:, filled:] = means[:, filled - 1 : filled]
    return means


def _projection(dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random signs `[dim, VALUE_DIMS]` that keep squared norms on average; the identity for short vectors."""
    if dim <= VALUE_DIMS:
        return torch.eye(dim, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    signs = torch.randint(0, 2, (dim, VALUE_DIMS), generator=generator, device=device) * 2 - 1
    return signs.to(dtype) / math.sqrt(VALUE_DIMS)


def _pooled_values(values: torch.Tensor, layout: TileLayout) -> tuple[torch.Tensor, ...]:
    """Sums over the members of every row of level 1 and above, from `[G, n * tile, P + 1]`."""
    pooled = []
    for level in range(1, layout.num_levels):
        values = F.pad(values, (0, 0, 0, values.shape[1] % 2))
        values = values[:, 0::2] + values[:, 1::2]
        tiles = layout.level_tiles(level)
        values = F.pad(values, (0, 0, 0, tiles * layout.tile - values.shape[1]))
        pooled.append(values.unflatten(1, (tiles, -1)))
    return tuple(pooled)


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
