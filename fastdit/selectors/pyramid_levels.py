"""Levels of key blocks by their rank, the way of PSA (arXiv 2512.04025): the heaviest fine, the next ones pooled.

A block is the tokens of one tile of the coarsest level in use, so that it can be written at every level: as one tile
of that level, two of the level below, and so on. Blocks are disjoint, so what a row keeps is disjoint as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdit_kernels import TileLayout

# Level of a block that is not kept.
DROPPED = -1
LevelTable = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LevelRule:
    """How much of the keys each level gets, in order of importance: the finest level takes the heaviest blocks.

    Tables pair a level with a fraction, in ascending order of the levels.

    Args:
        shares: Share of the blocks of each level; the rest is dropped.
        mass: Share of the attention mass of each level, instead of `shares`. The block that crosses a bound belongs to
            the finer level.
        min_fine: With `mass`, least share of the blocks at level 0.
        min_similarity: Least mean cosine between the first and the last key of the runs that a level pools; a block
            that is less alike takes the coarsest lower level where it is alike enough. Empty for no such bound.
    """

    shares: LevelTable = ()
    mass: LevelTable = ()
    min_fine: float = 0.0
    min_similarity: LevelTable = ()

    @property
    def top(self) -> int:
        """The coarsest level in use."""
        return (self.shares or self.mass)[-1][0]

    def bounds(self, blocks: int) -> list[tuple[int, int]]:
        """With `shares`, every level and the rank at which it ends; at least one block is kept."""
        total, found = 0.0, []
        for level, share in self.shares:
            total += share * blocks
            found.append((level, max(1, round(total))))
        return found

    def max_tiles(self, blocks: int) -> int:
        """Tiles that a row keeps at most."""
        if self.mass:
            return blocks << self.top
        bounds = self.bounds(blocks)
        if self.min_similarity:
            return bounds[-1][1] << self.top
        starts = [0, *(end for _, end in bounds)]
        return sum((end - start) << (self.top - level) for (level, end), start in zip(bounds, starts, strict=False))


def choose_levels(
    mass: torch.Tensor, key: torch.Tensor, rule: LevelRule, layout: TileLayout, forced: torch.Tensor | None
) -> list[torch.Tensor]:
    """The nodes to use.

    Args:
        mass: Attention mass of the tiles of level 0 in each row, `[G, t, n]`.
        key: `[G, S, D]`, the video first.
        rule: Shares or mass of each level.
        layout: Tiles and levels of the video; its coarsest level is `rule.top`.
        forced: bool `[G, t, n]`: tiles whose block is kept at level 0 in any case.

    Returns:
        Per level bool `[G, t, n_l]`.
    """
    blocks = layout.level_tiles(rule.top)
    padding = (0, (blocks << rule.top) - layout.num_tiles)
    importance = F.pad(mass, padding).unflatten(2, (blocks, -1)).sum(3)
    levels = _by_share(importance, rule) if rule.shares else _by_mass(importance, rule)
    if rule.min_similarity:
        levels = torch.minimum(levels, _alike_up_to(key, rule, layout).unsqueeze(1))
    if forced is not None:
        levels = levels.masked_fill(F.pad(forced, padding).unflatten(2, (blocks, -1)).any(3), 0)
    cut = []
    for level in range(layout.num_levels):
        block = torch.arange(layout.level_tiles(level), device=mass.device) >> (rule.top - level)
        cut.append(levels[..., block] == level)
    return cut


def _by_share(importance: torch.Tensor, rule: LevelRule) -> torch.Tensor:
    """Level of every block, `[G, t, blocks]`."""
    order = importance.argsort(dim=2, descending=True, stable=True)
    level_at = torch.full((importance.shape[2],), DROPPED, device=importance.device)
    for level, end in reversed(rule.bounds(len(level_at))):
        level_at[:end] = level
    return torch.empty_like(order).scatter_(2, order, level_at.expand_as(order))


def _by_mass(importance: torch.Tensor, rule: LevelRule) -> torch.Tensor:
    """Level of every block, `[G, t, blocks]`."""
    ranked, order = importance.sort(dim=2, descending=True, stable=True)
    before = ranked.cumsum(2) - ranked
    before = before / ranked.sum(2, keepdim=True).clamp_min(torch.finfo(ranked.dtype).tiny)
    level_at = torch.full_like(order, DROPPED)
    bound = sum(share for _, share in rule.mass)
    for level, share in reversed(rule.mass):
        level_at.masked_fill_(before < bound, level)
        bound -= share
    level_at[..., : math.ceil(rule.min_fine * order.shape[2])] = 0
    return torch.empty_like(order).scatter_(2, order, level_at)


def _alike_up_to(key: torch.Tensor, rule: LevelRule, layout: TileLayout) -> torch.Tensor:
    """The coarsest level at which every block is alike enough, 0 if there is none, `[G, blocks]`."""
    directions = F.normalize(key[:, : layout.length].to(torch.promote_types(key.dtype, torch.float32)), dim=2)
    blocks = layout.level_tiles(rule.top)
    allowed = torch.zeros(len(key), blocks, dtype=torch.int64, device=key.device)
    for level, least in rule.min_similarity:
        if not 0 < level <= rule.top:
            continue
        first = torch.arange(0, layout.length, 1 << level, device=key.device)
        last = (first + (1 << level) - 1).clamp(max=layout.length - 1)
        cosine = (directions[:, first] * directions[:, last]).sum(2)
        runs = layout.tile << (rule.top - level)
        padding = (0, blocks * runs - len(first))
        counts = F.pad(torch.ones_like(cosine[0]), padding).view(blocks, runs).sum(1)
        mean = F.pad(cosine, padding).unflatten(1, (blocks, runs)).sum(2) / counts
        allowed.masked_fill_(mean >= least, level)
    return allowed
