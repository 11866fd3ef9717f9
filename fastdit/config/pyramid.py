"""Settings of the pyramid method."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdit.config.base import HEAD_ORDER_NAMES, AttentionConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.selectors import pyramid
from fastdit.selectors.own_tiles import OwnTiles
from fastdit.selectors.pyramid_levels import LevelRule, LevelTable
from fastdit.selectors.pyramid_top_down import select_top_down
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels import BlockMask, TileLayout
from fastdit_kernels.tile_layout import MAX_LEVELS

SEARCHES = ("all", "top_down")


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(AttentionConfig):
    """Cover the keys with tiles of several pooling levels: important places fine, the rest coarse or not at all.

    Each query tile gets the combination of tiles that is estimated to err least (`selectors.pyramid`). Text tiles stay
    at level 0 and count towards `density`.

    Args:
        density: Share of key tiles per query tile; a tile of any level costs the same.
        num_levels: Pooling levels, level 0 included; level `l` pools runs of `2**l` tokens.
        q_samples: Rows sampled of each query tile.
        kv_samples: Tokens seen of each key tile by the estimates; `None` for all. Fewer are cheaper, but miss peaks.
        keep_own_tile: Keep the key tiles of the query's own place at level 0, in heads whose keys share the order of
            the queries; they count towards `density`. `None` does so where peaks may be missed, with `kv_samples`.
        order: A name that `orders.video_order` knows, for queries and keys alike; `"score"`: keys by attention got,
            per head, and queries in Gilbert order; or `"auto"`: per head what errs least of these five on eight rows
            of 16 query tiles, settled once per run and layer, or given by a plan.
        level_shares: Instead of the least estimated error, levels by rank as in PSA (arXiv 2512.04025): which share of
            the key blocks each level takes, e.g. `{0: 0.1, 1: 0.05, 3: 0.2}`, the finest level the blocks of the
            largest attention mass; the rest is dropped. A block is `kv_tile * 2**l` tokens, `l` the coarsest level
            named, so small tiles suit it. Text comes on top; `density` does not apply.
        level_mass: Likewise, with the share of the attention mass that the blocks of each level carry together, e.g.
            `{0: 0.5, 1: 0.1, 2: 0.1, 3: 0.1}`.
        min_fine: With `level_mass`, least share of the blocks at level 0.
        min_similarity: With either, least mean cosine between the first and the last key of the runs that a level
            pools, e.g. `{1: 0.7, 2: 0.65, 3: 0.6}`, for every pooled level named; blocks that are less alike take a
            lower level.
        search: `"all"` tiles of all levels, or `"top_down"` for 100,000 tokens and more: the coarsest tiles first, then
            the children of the most promising ones alone, as in LLSA (arXiv 2512.16615). Needs memory and time for
            `beam` instead of all tiles, but misses peaks that vanish in the means of coarse tiles; the own tile is kept
            by default. More levels make it faster; `kv_samples` does not apply.
        beam: With `"top_down"`, tiles of each level that are opened, per query tile; `None` for as many as are kept.
    """

    method: ClassVar[str] = "pyramid"
    order_names: ClassVar[tuple[str, ...]] = HEAD_ORDER_NAMES

    order: str = "auto"
    density: float = 0.2
    num_levels: int = 6
    q_samples: int = 4
    kv_samples: int | None = None
    keep_own_tile: bool | None = None
    level_shares: LevelTable | Mapping[int, float] = ()
    level_mass: LevelTable | Mapping[int, float] = ()
    min_fine: float = 0.06
    min_similarity: LevelTable | Mapping[int, float] = ()
    search: str = "all"
    beam: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("density", self.density)
        for name in ("num_levels", "q_samples"):
            check_count(name, getattr(self, name), 1)
        if self.num_levels > MAX_LEVELS:
            raise ConfigError(f"num_levels={self.num_levels}: accepted is an integer of at most {MAX_LEVELS}")
        if self.kv_samples is not None:
            check_count("kv_samples", self.kv_samples, 1)
        check_fraction("min_fine", self.min_fine)
        check_choice("search", self.search, SEARCHES)
        if self.beam is not None:
            check_count("beam", self.beam, 1)
        if self.search == "all" and self.beam is not None:
            raise ConfigError(f"beam={self.beam}: accepted with search='top_down' only")
        if self.search == "top_down" and self.kv_samples is not None:
            raise ConfigError(f"kv_samples={self.kv_samples}: search='top_down' sees all keys of the tiles it looks at")
        for name in ("level_shares", "level_mass", "min_similarity"):
            object.__setattr__(self, name, _level_table(name, getattr(self, name), self.num_levels))
        self._check_levels()

    def _check_levels(self) -> None:
        if self.level_shares and self.level_mass:
            raise ConfigError("level_shares and level_mass exclude each other: give one")
        for name in ("level_shares", "level_mass"):
            total = sum(share for _, share in getattr(self, name))
            if getattr(self, name) and not 0 < total <= 1 + 1e-6:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: accepted are fractions whose sum is above 0, at most 1"
                )
        rule = self._rule
        if rule is not None and self.search != "all":
            raise ConfigError(
                f"search={self.search!r}: level_shares and level_mass rank all tiles, so 'all' is accepted"
            )
        if rule is None:
            if self.min_similarity:
                raise ConfigError("min_similarity: accepted with level_shares or level_mass only")
            return
        if self.density != type(self).density:
            raise ConfigError(f"density={self.density}: level_shares and level_mass set the density themselves")
        pooled = {level for level, _ in rule.shares or rule.mass} - {0}
        if self.min_similarity and not pooled <= {level for level, _ in rule.min_similarity}:
            raise ConfigError(f"min_similarity={self.min_similarity}: give a value for each of the levels {pooled}")

    @property
    def _rule(self) -> LevelRule | None:
        """Levels by rank, if asked for."""
        shares, mass, similarity = self.level_shares, self.level_mass, self.min_similarity
        assert isinstance(shares, tuple), "settled at construction"
        assert isinstance(mass, tuple), "settled at construction"
        assert isinstance(similarity, tuple), "settled at construction"
        if not shares and not mass:
            return None
        return LevelRule(shares, mass, self.min_fine if mass else 0.0, similarity)

    @property
    def pools_tiles(self) -> bool:
        """Where there is more than one level."""
        return self.num_levels > 1

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose tiles for keys in the order of the queries; see `selectors.pyramid.select`."""
        shares_order = torch.ones(query.shape[1], dtype=torch.bool, device=query.device)
        return self.select_reordered(query, key, value, grid, shares_order)

    def candidates(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        runs: torch.Tensor | None = None,
    ) -> list[BlockMask]:
        """One mask, for queries and keys in any order."""
        return self._masks(query, key, value, grid, shares_order, [[self.density] * query.shape[1]], runs)

    @property
    def selects_with(self) -> Hashable | None:
        """All settings but the density and the order; the search from the top goes head by head anyway."""
        if self.search == "top_down":
            return None
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("density", "order")]
        return type(self), *(getattr(self, name) for name in names)

    def select_heads(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        configs: Sequence[Sequence[AttentionConfig]],
        runs: torch.Tensor | None = None,
    ) -> list[BlockMask]:
        """Choose tiles for heads of several densities."""
        densities = [
            [config.density for config in of_heads if isinstance(config, PyramidConfig)] for of_heads in configs
        ]
        assert all(len(one) == query.shape[1] for one in densities), (
            "only methods that agree in all but the density select together"
        )
        return self._masks(query, key, value, grid, shares_order, densities, runs)

    def _masks(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        densities: Sequence[Sequence[float]],
        runs: torch.Tensor | None,
    ) -> list[BlockMask]:
        """Masks, each for a density of each head."""
        q_layout, rule = self.query_layout(query, grid, runs), self._rule
        kv_layout = TileLayout(grid.key_segments, self.kv_tile, self.num_levels if rule is None else rule.top + 1)
        misses_peaks = self.kv_samples is not None or self.search == "top_down"
        keep_own = misses_peaks if self.keep_own_tile is None else self.keep_own_tile
        budgets = [[max(1, round(density * kv_layout.num_tiles)) for density in one] for one in densities]
        own = OwnTiles.of(q_layout, kv_layout, shares_order, runs) if keep_own else None
        if self.search == "top_down":
            return [
                select_top_down(
                    query,
                    key,
                    value,
                    q_layout,
                    kv_layout,
                    budget=budget,
                    beam=budget if self.beam is None else self.beam,
                    q_samples=self.q_samples,
                    own=own,
                )
                for (budget,) in map(set, budgets)
            ]
        return pyramid.select(
            query,
            key,
            value,
            q_layout,
            kv_layout,
            budgets=budgets,
            q_samples=self.q_samples,
            kv_samples=self.kv_samples,
            own=own,
            rule=rule,
        )


def _level_table(name: str, given: LevelTable | Mapping[int, float], num_levels: int) -> LevelTable:
    """Pairs of a level and a fraction in ascending order of the levels, from pairs or a mapping in any order."""
    try:
        pairs = [(level, value) for level, value in (given.items() if isinstance(given, Mapping) else given)]
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={given!r}: accepted is a mapping such as {{0: 0.1, 1: 0.05, 3: 0.2}}") from None
    for level, value in pairs:
        check_count(f"{name}: level", level)
        if level >= num_levels:
            raise ConfigError(f"{name}: level {level}: accepted are levels below num_levels={num_levels}")
        check_fraction(f"{name}[{level}]", value)
    if len({level for level, _ in pairs}) < len(pairs):
        raise ConfigError(f"{name}={given!r}: a level is given twice")
    return tuple(sorted(pairs))
