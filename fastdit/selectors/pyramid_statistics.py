"""What every tile of every pooling level would contribute to sampled query rows, and what using or dropping it costs.

For a sampled row with log-sum-exp `lse` and output `o`, a node (a tile of a level) has the fine contribution
`F = sum e^(s - lse) v` over its tokens with mass `m`, and the pooled one `P = sum e^(s_g + ln n_g - lse) v_g` over its
groups with mass `u`. Errors are means over the sampled rows of a query tile:

    use = mean(|P - F| + |u - m| |o|) / 2    (0 at level 0),    drop = mean(|F| + m |o|) / 2

The first-order form `|F - m o|` of a drop is not used: a node with nearly all of the mass would look free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit_kernels import TileLayout, stratified_rows

# Pooled weights are at most one when all keys are seen; with sampled keys a missed peak must not overflow.
MAX_LOG_WEIGHT = 20.0


@dataclass(frozen=True)
class TileRows:
    """Keys and values of consecutive tiles.

    Args:
        key: `[G, n * rows, D]`.
        value: Likewise.
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
        contribution: What a used node adds to the output before normalisation, `[G, n, R, D]`.
        mass: What it adds to the denominator, `[G, n, R]`.
        output: Output of the rows over all keys seen, `[G, R, D]`.
        text_contribution: Part of the text, `[G, R, D]`; `None` without text.
        text_mass: Likewise, `[G, R]`.
    """

    use: list[torch.Tensor]
    drop: list[torch.Tensor]
    contribution: list[torch.Tensor]
    mass: list[torch.Tensor]
    output: torch.Tensor
    text_contribution: torch.Tensor | None
    text_mass: torch.Tensor | None

    def squared_error(self, cut: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed squares of the output error that a cut gives the sampled rows, and of the output itself.

        This is the error as attention would make it, with its cancellations and its normalisation, not the sum of
        bounds that the cut was chosen by.

        Args:
            cut: Per level bool `[G, n, t]`.

        Returns:
            Two `[G]`.
        """
        zero = torch.zeros_like(self.output)
        total = zero if self.text_contribution is None else self.text_contribution
        mass = zero[..., 0] if self.text_mass is None else self.text_mass
        for keep, contribution, node_mass in zip(cut, self.contribution, self.mass, strict=True):
            rows = keep.repeat_interleave(mass.shape[1] // keep.shape[2], 2).to(mass.dtype)
            total = total + (contribution * rows.unsqueeze(3)).sum(1)
            mass = mass + (node_mass * rows).sum(1)
        # A row that keeps no mass at all has output 0, as in attention over nothing.
        estimate = total / mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(2)
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

    def tiles(level: int) -> TileRows:
        count = layout.segment_tiles(level)[0]
        place = slice(layout.level_offset(level) * layout.tile, (layout.level_offset(level) + count) * layout.tile)
        return TileRows(pooled_key[:, place].to(wide), pooled_value[:, place].to(wide), log_members[place], count)

    video = layout.segments[0]
    if kv_samples is None:
        fine = tiles(0)
    else:
        segment = TileLayout((video,), layout.tile)
        picked = stratified_rows(segment, kv_samples, key.device)
        weight = (segment.tile_rows(key.device).to(wide) / kv_samples).log().repeat_interleave(kv_samples)
        fine = TileRows(key[:, picked].to(wide), value[:, picked].to(wide), weight, segment.num_tiles)
    text = None
    if layout.length > video:
        zero = log_members.new_zeros(layout.length - video)
        text = TileRows(key[:, video:].to(wide), value[:, video:].to(wide), zero, 1)
    return PyramidKeys(fine, tuple(tiles(level) for level in range(1, layout.num_levels)), text)


def node_statistics(rows: torch.Tensor, keys: PyramidKeys, samples: int, scale: float) -> NodeStatistics:
    """Contributions and errors of all nodes for some query tiles.

    Args:
        rows: Sampled queries, `samples` for each tile, `[G, R, D]` in the dtype of `keys`.
        keys: See `pyramid_keys`.
        samples: Rows per query tile.
        scale: Factor on the scores.
    """
    fine_scores = _scores(rows, keys.fine, scale)
    lse = fine_scores.logsumexp(2, keepdim=True)
    text_contribution = text_mass = None
    if keys.text is not None:
        text_scores = _scores(rows, keys.text, scale)
        lse = torch.logaddexp(lse, text_scores.logsumexp(2, keepdim=True))
        text_parts = _contribution(text_scores, lse, keys.text)
        text_contribution, text_mass = (part.squeeze(1) for part in text_parts)
    fine, mass = _contribution(fine_scores, lse, keys.fine)
    output = fine.sum(1) if text_contribution is None else fine.sum(1) + text_contribution
    size = torch.linalg.vector_norm(output, dim=2).unsqueeze(1)
    contributions, masses = [fine], [mass]
    drop = [_tile_mean(torch.linalg.vector_norm(fine, dim=3) + mass * size, samples)]
    use = [torch.zeros_like(drop[0])]
    for tiles in keys.pooled:
        fine, mass = _pair_sums(fine), _pair_sums(mass.unsqueeze(3)).squeeze(3)
        pooled, pooled_mass = _contribution(_scores(rows, tiles, scale), lse, tiles)
        difference = torch.linalg.vector_norm(pooled - fine, dim=3)
        use.append(_tile_mean(difference + (pooled_mass - mass).abs() * size, samples))
        drop.append(_tile_mean(torch.linalg.vector_norm(fine, dim=3) + mass * size, samples))
        contributions.append(pooled)
        masses.append(pooled_mass)
    return NodeStatistics(use, drop, contributions, masses, output, text_contribution, text_mass)


def _scores(rows: torch.Tensor, tiles: TileRows, scale: float) -> torch.Tensor:
    return (rows @ tiles.key.mT).mul_(scale).add_(tiles.bias)


def _contribution(scores: torch.Tensor, lse: torch.Tensor, tiles: TileRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Unnormalised output `[G, n, R, D]` and mass `[G, n, R]` of every tile; overwrites `scores`."""
    weights = scores.sub_(lse).clamp_(max=MAX_LOG_WEIGHT).exp_().unflatten(2, (tiles.tiles, -1)).transpose(1, 2)
    return weights @ tiles.value.unflatten(1, (tiles.tiles, -1)), weights.sum(3)


def _pair_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums of neighbouring nodes `[G, n, R, D]`; an odd last one stays alone."""
    if x.shape[1] % 2:
        x = F.pad(x, (0, 0, 0, 0, 0, 1))
    return x[:, 0::2] + x[:, 1::2]


def _tile_mean(error: torch.Tensor, samples: int) -> torch.Tensor:
    mean: torch.Tensor = error.unflatten(2, (-1, samples)).mean(3)
    return mean / 2
