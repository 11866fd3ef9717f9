"""Settings of the cached method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.config.pyramid import PyramidConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.orders import ORDER_NAMES
from fastdit.selectors import exact_mass
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels import BlockMask, TileLayout

MassName = Literal["source", "exact"]
MASS_NAMES: tuple[MassName, ...] = get_args(MassName)
# Settings of the adaptive method that say how much to keep, not how to estimate.
BUDGET_FIELDS = {"top_p", "min_density", "max_density", "density"}


@dataclass(frozen=True, kw_only=True)
class CachedConfig(AttentionConfig):
    """Build masks by another method every few steps and reuse them in between (AdaSpa 2502.21079, SparseD 2509.24014).

    Every transformer, layer and guidance branch has a mask of its own, dropped at the end of the run. Every
    `check_every` steps a few sampled query rows measure its recall exactly. Heads whose recall has fallen below
    `min_recall` times what it was when their mask was built are built anew, alone, in the next step: the figure is on
    its way to the host meanwhile, so that no step waits for the device.

    Settings shared by all methods (tiles, schedule, ...) may be given here or to `source`. Where `source` orders keys
    by head, the order is kept beside the mask.

    Args:
        source: The method that builds the masks.
        refresh_every: Steps after which all heads are built anew; 1 is `source` itself.
        check_every: Steps from one measurement of the recall to the next, counted from when the mask was built; the
            steps between are free of it.
        min_recall: Share of its first recall that a head's mask must keep; `None` measures nothing.
        sample_tiles: Query tiles, evenly spread over the video, that the recall is measured on.
        sample_rows: Query rows of each of them. Every measurement takes the same places, so that few rows tell a fall.
        mass: What masks are built from: `"source"` as it estimates, or `"exact"`, the true softmax mass of every tile
            pair (`selectors.exact_mass`). That takes a dense pass at every refresh step, whose output is the output of
            the step, and one more pass over the scores. Of an `AdaptiveConfig` as source it takes `density`, or
            `top_p` between `min_density` and `max_density`, each of the video keys alone.
        text_density: Share of text tiles that video queries keep, by the exact mass; only with `mass="exact"`.
    """

    method: ClassVar[str] = "cached"
    # Those of any source; the source refuses what is not its own.
    order_names: ClassVar[tuple[str, ...]] = PyramidConfig.order_names

    source: AttentionConfig = dataclasses.field(default_factory=AdaptiveConfig)
    refresh_every: int = 10
    check_every: int = 5
    min_recall: float | None = 0.9
    sample_tiles: int = 8
    sample_rows: int = 1
    mass: MassName = "source"
    text_density: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, AttentionConfig) or isinstance(self.source, CachedConfig):
            raise ConfigError(f"source={self.source!r}: accepted is the config of another method")
        if not self.source.needs_tensors:
            raise ConfigError(
                f"source={self.source.method!r}: its masks depend on the geometry alone and are built once anyway; "
                "use it without CachedConfig"
            )
        check_count("refresh_every", self.refresh_every, 1)
        check_count("check_every", self.check_every, 1)
        check_count("sample_tiles", self.sample_tiles, 1)
        check_count("sample_rows", self.sample_rows, 1)
        if self.min_recall is not None:
            check_fraction("min_recall", self.min_recall)
        check_choice("mass", self.mass, MASS_NAMES)
        check_fraction("text_density", self.text_density)
        self._check_mass()
        self._share_settings()
        if self.mass == "exact" and self.source.orders_heads:
            raise ConfigError(
                f"order={self.order!r} with mass='exact': accepted are {', '.join(map(repr, ORDER_NAMES))}, in which "
                "keys share the order of the queries"
            )

    @property
    def reuse_rule(self) -> tuple[Any, ...]:
        """What heads must agree on to share a launch: how long masks last, and how they are tested."""
        return self.refresh_every, self.check_every, self.min_recall, self.sample_tiles, self.sample_rows

    def _check_mass(self) -> None:
        """Refuse what the exact mass leaves without effect."""
        if self.mass == "source":
            if self.text_density != 1.0:
                raise ConfigError(f"text_density={self.text_density} with mass='source': give mass='exact'")
            return
        if not isinstance(self.source, AdaptiveConfig):
            raise ConfigError(f"mass='exact' with source={self.source.method!r}: accepted is an AdaptiveConfig")
        used = {field.name for field in dataclasses.fields(AttentionConfig)} | BUDGET_FIELDS
        for field in dataclasses.fields(self.source):
            value = getattr(self.source, field.name)
            if field.name not in used and value != field.default:
                raise ConfigError(f"source has {field.name}={value!r}, which mass='exact' has no use for: leave it out")

    def _share_settings(self) -> None:
        """Make the shared settings of this config and of `source` agree; what was given wins over defaults."""
        own_default, source_default = AttentionConfig(), type(self.source)()
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(AttentionConfig):
            own, theirs = getattr(self, field.name), getattr(self.source, field.name)
            if own == getattr(own_default, field.name):
                object.__setattr__(self, field.name, theirs)
            elif theirs == getattr(source_default, field.name):
                changed[field.name] = own
            elif own != theirs:
                raise ConfigError(f"{field.name}={own!r}, but source has {theirs!r}: give it once")
        object.__setattr__(self, "source", dataclasses.replace(self.source, **changed))

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """The mask of `source`. Masks are kept by the session (`mask_reuse`), not here."""
        return self.source.select(query, key, value, grid)

    def select_exact(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid
    ) -> tuple[BlockMask, torch.Tensor]:
        """Choose tiles by the exact mass; see `selectors.exact_mass`.

        Returns:
            The mask, and the output of dense attention `[B, H, S, D]` in tile order.
        """
        source = self.source
        assert isinstance(source, AdaptiveConfig), "checked at construction"
        q_layout, kv_layout = TileLayout(grid.query_segments, self.q_tile), TileLayout(grid.key_segments, self.kv_tile)
        out, mass = exact_mass.dense_pass(query, key, value, q_layout, kv_layout, self.implementation)
        fixed = source.density
        mask = exact_mass.select(
            mass,
            q_layout,
            kv_layout,
            top_p=source.top_p if fixed is None else None,
            min_density=source.min_density if fixed is None else fixed,
            max_density=source.max_density if fixed is None else fixed,
            text_density=self.text_density,
            kept_length=grid.kept_length,
        )
        return mask, out

    def at_layer(self, layer: int, num_layers: int) -> CachedConfig:
        """With `source` as it is in the layer."""
        return dataclasses.replace(self, source=self.source.at_layer(layer, num_layers))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, those of `source` within."""
        return {**super().to_dict(), "source": self.source.to_dict()}
