"""What every tile of every pooling level would contribute to sampled query rows, and what using or dropping it costs.

For a sampled row with log-sum-exp `lse` and output `o`, a node (a tile of a level) has the fine contribution
`F = sum e^(s - lse) v` over its tokens with mass `m`, and the pooled one `P = sum e^(s_g + ln n_g - lse) v_g` over its
groups with mass `u`. Errors are means over the sampled rows of a query tile:

    use = mean(|P - F| + |u - m| |o|) / 2    (0 at level 0),    drop = mean(|F| + m |o|) / 2

The first-order form `|F - m o|` of a drop is not used: a node with nearly all of the mass would look free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit_kernels import TileLayout, stratified_rows

# Pooled weights are at most one when all keys are seen; with sampled keys a missed peak must not overflow.
MAX_LOG_WEIGHT = 20.0
# Norms of value vectors are taken after a random projection to this many dimensions, a quarter of the cost at 64.
VALUE_DIMS = 16


@dataclass(frozen=True)
class TileRows:
    """Keys and values of consecutive tiles.

    Args:
        key: `[G, n * rows, D]`.
        value: `[G, n * rows, P + 1]`: projected values, then a one that sums up the mass.
        bias: Natural log of the tokens a row stands for, -inf on padding, `[n * rows]`.
        tiles: `n`.
    """

    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor
    tiles: int


@dataclass(frozen=True)
class PyramidKeys:
    """What sampled rows are compared with.

    Args:
        fine: Tokens of the video, all or a sample of each tile.
        pooled: Video tiles of level 1 and above.
        text: Text tokens, which every row sees; `None` without text.
    """

    fine: TileRows
    pooled: tuple[TileRows, ...]
    text: TileRows | None


@dataclass(frozen=True)
class NodeStatistics:
    """Per level, over `n` nodes, `R` sampled rows and `t` query tiles.

    Args:
        use: Error of using a node, `[G, n, t]`.
        drop: Error of dropping its tokens, `[G, n, t]`.
        contribution: What a used node adds to the output and to the mass, `[G, n, R, P + 1]`.
        output: Output of the rows over all keys seen, `[G, R, P]`.
        text: What the text adds, `[G, R, P + 1]`; `None` without text.
    """

    use: list[torch.Tensor]
    drop: list[torch.Tensor]
    contribution: list[torch.Tensor]
    output: torch.Tensor
    text: torch.Tensor | None

    def squared_error(self, cut: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed squares of the output error that a cut gives the sampled rows, and of the output itself.

        This is the error as attention would make it, with its cancellations and its normalisation, not the sum of
        bounds that the cut was chosen by.

        Args:
            cut: Per level bool `[G, n, t]`.

        Returns:
            Two `[G]`.
        """
        total = torch.zeros_like(self.contribution[0][:, 0]) if self.text is None else self.text
        for keep, contribution in zip(cut, self.contribution, strict=True):
            rows = keep.repeat_interleave(total.shape[1] // keep.shape[2], 2).unsqueeze(3)
            total = total + (contribution * rows.to(total.dtype)).sum(1)
        # A row that keeps no mass at all has output 0, as in attention over nothing.
        estimate = total[..., :-1] / total[..., -1:].clamp_min(torch.finfo(total.dtype).tiny)
        return (estimate - self.output).square().sum((1, 2)), self.output.square().sum((1, 2))


def pyramid_keys(
    key: torch.Tensor,
    value: torch.Tensor,
    pooled_key: torch.Tensor,
    pooled_value: torch.Tensor,
    *,
    layout: TileLayout,
    kv_samples: int | None,
) -> PyramidKeys:
    """Cut tokens and pyramid buffers into what `node_statistics` reads; the first segment is the video.

    Args:
        key: `[G, S, D]` in tile order.
        value: Likewise.
        pooled_key: `[G, total_tiles * tile, D]`, see `pool_key_value`.
        pooled_value: Likewise.
        layout: Tiles and levels of the keys.
        kv_samples: Tokens seen of each level-0 tile; `None` for all.
    """
    wide = torch.promote_types(key.dtype, torch.float32)
    log_members = layout.row_members(key.device).to(wide).log()
    projection = _projection(value.shape[2], wide, value.device)

    def rows(key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, tiles: int) -> TileRows:
        return TileRows(key.to(wide), F.pad(value.to(wide) @ projection, (0, 1), value=1.0), bias, tiles)

    def tiles(level: int) -> TileRows:
        count = layout.segment_tiles(level)[0]
        place = slice(layout.level_offset(level) * layout.tile, (layout.level_offset(level) + count) * layout.tile)
        return rows(pooled_key[:, place], pooled_value[:, place], log_members[place], count)

    video = layout.segments[0]
    if kv_samples is None:
        fine = tiles(0)
    else:
        segment = TileLayout((video,), layout.tile)
        picked = stratified_rows(segment, kv_samples, key.device)
        weight = (segment.tile_rows(key.device).to(wide) / kv_samples).log().repeat_interleave(kv_samples)
        fine = rows(key[:, picked], value[:, picked], weight, segment.num_tiles)
    text = None
    if layout.length > video:
        zero = log_members.new_zeros(layout.length - video)
        text = rows(key[:, video:], value[:, video:], zero, 1)
    return PyramidKeys(fine, tuple(tiles(level) for level in range(1, layout.num_levels)), text)


def node_statistics(rows: torch.Tensor, keys: PyramidKeys, samples: int, scale: float) -> NodeStatistics:
    """Contributions and errors of all nodes for some query tiles.

    Args:
        rows: Sampled queries, `samples` for each tile, `[G, R, D]` in the dtype of `keys`.
        keys: See `pyramid_keys`.
        samples: Rows per query tile.
        scale: Factor on the scores.
    """
    scores = _scores(rows, keys.fine, scale)
    peak = scores.amax(1, keepdim=True)
    text = None
    if keys.text is not None:
        text_scores = _scores(rows, keys.text, scale)
        peak = torch.maximum(peak, text_scores.amax(1, keepdim=True))
        text = _contribution(text_scores, peak, keys.text).squeeze(1)
    fine = _contribution(scores, peak, keys.fine)
    total = fine.sum(1) if text is None else fine.sum(1) + text
    mass = total[..., -1:]
    output, lse = total[..., :-1] / mass, peak + mass.mT.log()
    fine = fine.div_(mass.unsqueeze(1))
    text = None if text is None else text / mass
    size = torch.linalg.vector_norm(output, dim=2).unsqueeze(1)
    contributions, drop = [fine], [_error(fine, size, samples)]
    use = [torch.zeros_like(drop[0])]
    for tiles in keys.pooled:
        fine = _pair_sums(fine)
        pooled = _contribution(_scores(rows, tiles, scale), lse, tiles)
        use.append(_error(pooled - fine, size, samples))
        drop.append(_error(fine, size, samples))
        contributions.append(pooled)
    return NodeStatistics(use, drop, contributions, output, text)


def _projection(dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random signs `[dim, VALUE_DIMS]` that keep squared norms on average; the identity for short vectors."""
    if dim <= VALUE_DIMS:
        return torch.eye(dim, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    signs = torch.randint(0, 2, (dim, VALUE_DIMS), generator=generator, device=device) * 2 - 1
    return signs.to(dtype) / math.sqrt(VALUE_DIMS)


def _scores(rows: torch.Tensor, tiles: TileRows, scale: float) -> torch.Tensor:
    """Scores with the keys first, `[G, n * rows, R]`: tiles are then contiguous and need no copy."""
    scores: torch.Tensor = tiles.key @ (rows * scale).mT
    return scores.add_(tiles.bias.unsqueeze(1))


def _contribution(scores: torch.Tensor, lse: torch.Tensor, tiles: TileRows) -> torch.Tensor:
    """Unnormalised output and mass of every tile, `[G, n, R, P + 1]`; overwrites `scores`."""
    weights = scores.sub_(lse).clamp_(max=MAX_LOG_WEIGHT).exp_().unflatten(1, (tiles.tiles, -1))
    added: torch.Tensor = weights.mT @ tiles.value.unflatten(1, (tiles.tiles, -1))
    return added


def _pair_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums of neighbouring nodes `[G, n, R, D]`; an odd last one stays alone."""
    if x.shape[1] % 2:
        x = F.pad(x, (0, 0, 0, 0, 0, 1))
    return x[:, 0::2] + x[:, 1::2]


def _error(change: torch.Tensor, size: torch.Tensor, samples: int) -> torch.Tensor:
    """`(|change of the output| + |change of the mass| size) / 2`, mean over the rows of a query tile: `[G, n, t]`."""
    norm = torch.linalg.vector_norm(change[..., :-1], dim=3) + change[..., -1].abs() * size
    mean: torch.Tensor = norm.unflatten(2, (-1, samples)).mean(3)
    return mean / 2
