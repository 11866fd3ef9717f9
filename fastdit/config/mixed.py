"""Settings of the mixed method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.config.cached import CachedConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.validation import check_count
from fastdit_kernels import BlockMask

Dense = Literal["dense"]
Row = tuple[int | None, int | None, "AttentionConfig | Dense"]
Place = int | tuple[int | None, int | None]
# Of the whole call, so all entries must agree on them.
SHARED = ("schedule", "min_tokens", "implementation")
# Each entry may have its own.
OWN = ("q_tile", "kv_tile", "order", "first_order", "shift_tiles")


@dataclass(frozen=True)
class HeadGroup:
    """Heads of one layer that follow the same settings.

    Args:
        heads: Their numbers, rising.
        config: A method, or `"dense"`.
    """

    heads: tuple[int, ...]
    config: AttentionConfig | Dense


@dataclass(frozen=True, kw_only=True)
class MixedConfig(AttentionConfig):
    """Let every head of every layer follow a method of its own, by a table.

    Heads that are `"dense"` go to the dense backend of the pipeline; all others of a layer share one kernel launch, or
    one for each combination of tile sizes and, for heads that reuse masks (`CachedConfig` entries), of the rule for
    that. Each method sees the tensors of its own heads alone. `CachedConfig(source=MixedConfig(...))` reuses the masks
    of all heads, by its own rule.

    Schedule, `min_tokens` and `implementation` may be given here or in entries, and hold for all. Tile sizes, order,
    `first_order` and `shift_tiles` given here hold for entries that leave them at their defaults.

    Args:
        heads: What chosen heads follow, `{place: config or "dense"}`. A place is a head number, for every layer, or
            `(layer, head)`, where `None` stands for all of them; layers count in each transformer. Of several entries
            for a head, `(layer, head)` wins over `(layer, None)`, and that over the head number. The config holds the
            table as sorted rows `(layer, head, entry)`, which are accepted too.
        default: What all other heads follow.
    """

    method: ClassVar[str] = "mixed"

    heads: Mapping[Place, AttentionConfig | Dense] | tuple[Row, ...] = ()
    default: AttentionConfig | Dense = dataclasses.field(default_factory=AdaptiveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        table: dict[tuple[int | None, int | None], AttentionConfig | Dense] = {}
        for layer, head, entry in _rows(self.heads):
            if (layer, head) in table:
                raise ConfigError(f"heads has layer {layer}, head {head} twice: give each place once")
            _check_entry(f"heads[{layer}, {head}]", entry)
            table[layer, head] = entry
        _check_entry("default", self.default)
        self._share_settings(list(table.values()))
        # Equal entries become one object, so that heads are grouped without comparing settings in every call.
        same: dict[AttentionConfig | Dense, AttentionConfig | Dense] = {}
        places = sorted(table, key=lambda place: tuple((number is None, number or 0) for number in place))
        settled = [(*place, self._settled(table[place], same)) for place in places]
        object.__setattr__(self, "heads", tuple(settled))
        object.__setattr__(self, "default", self._settled(self.default, same))

    def _share_settings(self, entries: list[AttentionConfig | Dense]) -> None:
        """Take the settings of the whole call from wherever they were given."""
        configs = [self, *(entry for entry in (self.default, *entries) if isinstance(entry, AttentionConfig))]
        for name in SHARED:
            standard = getattr(AttentionConfig(), name)
            given = {getattr(config, name) for config in configs} - {standard}
            if len(given) > 1:
                raise ConfigError(f"{name} is given as {' and '.join(sorted(map(repr, given)))}: accepted is one value")
            if given:
                object.__setattr__(self, name, given.pop())

    def _settled(
        self, entry: AttentionConfig | Dense, same: dict[AttentionConfig | Dense, AttentionConfig | Dense]
    ) -> AttentionConfig | Dense:
        if not isinstance(entry, AttentionConfig):
            return same.setdefault(entry, entry)
        changed = {name: getattr(self, name) for name in SHARED}
        for name in OWN:
            ours, standard = getattr(self, name), getattr(type(entry)(), name)
            if ours != getattr(AttentionConfig(), name) and getattr(entry, name) == standard:
                changed[name] = ours
        entry = dataclasses.replace(entry, **changed)
        return same.setdefault(entry, entry)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The table: `(layer, head, entry)`, where `None` stands for all layers or all heads."""
        assert isinstance(self.heads, tuple), "settled at construction"
        return self.heads

    @property
    def needs_tensors(self) -> bool:
        """Whether any entry does."""
        configs = [self.default, *(entry for _, _, entry in self.rows)]
        return any(isinstance(config, AttentionConfig) and config.needs_tensors for config in configs)

    def at_layer(self, layer: int, num_layers: int) -> MixedConfig:
        """The table of one layer: its default and chosen heads, without layer numbers.

        Raises:
            ConfigError: The table names a layer that the transformer does not have.
        """
        default = self.default
        heads: dict[Place, AttentionConfig | Dense] = {}
        # Rows of the layer come first and its heads before the whole of it, so they are settled in reverse.
        for place, head, entry in reversed(self.rows):
            if place is not None and place >= num_layers:
                raise ConfigError(f"heads names layer {place}: accepted are 0 to {num_layers - 1}")
            if place not in (None, layer):
                continue
            if head is None:
                default, heads = entry, {}
            else:
                heads[head] = entry
        return dataclasses.replace(self, default=default, heads=heads)

    def groups(self, num_heads: int) -> tuple[HeadGroup, ...]:
        """The heads of a layer by what they follow, in the order of their first heads.

        Args:
            num_heads: Heads of the layer.

        Raises:
            ConfigError: The table names a head that the layer does not have, or still has layer numbers.
        """
        members: dict[int, tuple[AttentionConfig | Dense, list[int]]] = {}
        table = {head: entry for layer, head, entry in self.rows if layer is None and head is not None}
        if len(table) < len(self.rows):
            raise ConfigError("heads names layers: a single call has none, give head numbers alone")
        if max(table, default=0) >= num_heads:
            raise ConfigError(f"heads names head {max(table)}: accepted are 0 to {num_heads - 1}")
        for head in range(num_heads):
            entry = table.get(head, self.default)
            members.setdefault(id(entry), (entry, []))[1].append(head)
        return tuple(HeadGroup(tuple(heads), config) for config, heads in members.values())

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Refused: heads may differ in order and tiles, so that the heads are split before (`head_groups`)."""
        raise ConfigError("MixedConfig has no single mask: use fastdit.enable or fastdit.sparse_attention")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; `heads` as rows `[layer, head, entry]`."""
        rows = [[layer, head, _plain(entry)] for layer, head, entry in self.rows]
        return {**super().to_dict(), "heads": rows, "default": _plain(self.default)}


def _rows(heads: Any) -> list[Row]:
    """The table as rows, its places checked."""
    if isinstance(heads, Mapping):
        pairs = [(place if isinstance(place, tuple) else (None, place), entry) for place, entry in heads.items()]
    elif isinstance(heads, tuple) and all(isinstance(row, tuple) and len(row) == 3 for row in heads):
        pairs = [(row[:2], row[2]) for row in heads]
    else:
        raise ConfigError(f"heads={heads!r}: accepted is a table such as {{0: 'dense', (3, 1): StaticConfig()}}")
    rows: list[Row] = []
    for place, entry in pairs:
        if len(place) != 2 or place == (None, None):
            raise ConfigError(f"heads has the place {place!r}: accepted are a head number and (layer, head)")
        for name, number in zip(("layer", "head"), place, strict=True):
            if number is not None:
                check_count(f"heads: {name}", number)
        rows.append((place[0], place[1], entry))
    return rows


def _check_entry(name: str, entry: Any) -> None:
    if isinstance(entry, MixedConfig) or (isinstance(entry, CachedConfig) and isinstance(entry.source, MixedConfig)):
        raise ConfigError(f"{name} is a table of heads: accepted is a method that selects by itself, or 'dense'")
    if isinstance(entry, CachedConfig) and entry.mass != "source":
        raise ConfigError(f"{name} has mass={entry.mass!r}, which serves all heads at once: accepted is mass='source'")
    if entry != "dense" and (not isinstance(entry, AttentionConfig) or not entry.method):
        raise ConfigError(f"{name}={entry!r}: accepted are 'dense' and the config of a method")


def _plain(entry: AttentionConfig | Dense) -> Any:
    return entry.to_dict() if isinstance(entry, AttentionConfig) else entry
