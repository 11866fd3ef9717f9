"""Settings of the cached method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastdit.config.adaptive import AdaptiveConfig
from fastdit.config.base import AttentionConfig
from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.validation import check_count, check_fraction
from fastdit_kernels import BlockMask


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
        check_every: Steps from one measurement of the recall to the next, counted from when the mask was built.
        min_recall: Share of its first recall that a head's mask must keep; `None` measures nothing.
        sample_tiles: Query tiles, evenly spread over the video, that the recall is measured on.
        sample_rows: Query rows of each of them.
    """

    method: ClassVar[str] = "cached"

    source: AttentionConfig = dataclasses.field(default_factory=AdaptiveConfig)
    refresh_every: int = 10
    check_every: int = 5
    min_recall: float | None = 0.9
    sample_tiles: int = 8
    sample_rows: int = 2

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
        self._share_settings()

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

    @property
    def query_order(self) -> str:
        """That of `source`."""
        return self.source.query_order

    def at_layer(self, layer: int, num_layers: int) -> CachedConfig:
        """With `source` as it is in the layer."""
        return dataclasses.replace(self, source=self.source.at_layer(layer, num_layers))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, those of `source` within."""
        return {**super().to_dict(), "source": self.source.to_dict()}
