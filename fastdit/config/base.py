"""Settings that all methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.orders import ORDER_NAMES
from fastdit.schedule import Schedule
from fastdit.validation import check_choice, check_count
from fastdit_kernels import BlockMask, TileLayout

# For methods that have `candidates`: those of geometry, keys alone by their score, or one of these per head.
HEAD_ORDER_NAMES = (*ORDER_NAMES, "score", "auto")
# Orders of queries and keys that order="auto" tries: heads that look along frames or time want queries so ordered too.
AUTO_PAIRS = (*((name, name) for name in ORDER_NAMES), ("gilbert", "score"))
IMPLEMENTATION_NAMES = ("auto", "triton", "flex", "torch", "reference")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Settings common to all methods.

    Args:
        schedule: Steps and layers that stay dense.
        q_tile: Query rows of a tile.
        kv_tile: Key rows of a tile.
        order: Token order: `"gilbert"`, `"raster"`, `"space_major"` or `"frame_gilbert"`, see `orders.video_order`.
        min_tokens: Sequences shorter than this stay dense, because skipping would not pay.
        first_order: Pooled tiles follow each query to first order instead of having their mean values alone
            (`fastdit_kernels.first_order`). Without effect on methods that pool nothing.
        shift_tiles: Tiles and pooled runs lie elsewhere in each step (`orders.shift_at`), so that errors of successive
            steps do not add up. Likewise without effect on methods that pool nothing.
        implementation: Kernel: `"auto"`, `"triton"`, `"flex"`, `"torch"` or `"reference"`.
    """

    method: ClassVar[str] = ""
    order_names: ClassVar[tuple[str, ...]] = ORDER_NAMES

    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    q_tile: int = 128
    kv_tile: int = 64
    order: str = "gilbert"
    min_tokens: int = 2048
    first_order: bool = True
    shift_tiles: bool = True
    implementation: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise ConfigError(f"schedule={self.schedule!r}: accepted is a fastdit.Schedule")
        check_count("q_tile", self.q_tile, 1)
        check_count("kv_tile", self.kv_tile, 1)
        check_count("min_tokens", self.min_tokens)
        for name in ("first_order", "shift_tiles"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: accepted are True and False")
        check_choice("order", self.order, self.order_names)
        check_choice("implementation", self.implementation, IMPLEMENTATION_NAMES)

    def select(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid) -> BlockMask:
        """Choose the key tiles of one call.

        Args:
            query: `[B, H, S, D]` in tile order, after norms and RoPE.
            key: `[B, H, S, D]`, likewise.
            value: `[B, H, S, D]` in tile order.
            grid: Geometry, `S = grid.length`.
        """
        raise ConfigError(f"{type(self).__name__} has no selector: use a method such as fastdit.AdaptiveConfig")

    @property
    def needs_tensors(self) -> bool:
        """Whether masks depend on the tensors; if not, one mask serves all calls of a geometry."""
        return True

    def at_layer(self, layer: int, num_layers: int) -> AttentionConfig:
        """The settings of one layer.

        Args:
            layer: Number of the layer in its transformer.
            num_layers: Layers of the transformer.
        """
        return self

    def phase_configs(self, transformer: int, layer: int, num_layers: int) -> tuple[AttentionConfig, ...]:
        """The settings of one layer in each phase of a run; one phase for all methods but a plan.

        Args:
            transformer: Number of the transformer in the pipeline.
            layer: Number of the layer in its transformer.
            num_layers: Layers of the transformer.
        """
        return (self.at_layer(layer, num_layers),)

    def phase_at(self, step: int, num_inference_steps: int | None) -> int:
        """Number of the phase that a step belongs to.

        Args:
            step: From 0.
            num_inference_steps: Steps of the run, `None` if nobody has said.
        """
        return 0

    def promised_recall(self, transformer: int, layer: int, phase: int) -> tuple[float, ...] | None:
        """The recall that each head of a layer had when it was measured; `None` for all methods but plans.

        Args:
            transformer: Number of the transformer in the pipeline.
            layer: Number of the layer in its transformer.
            phase: Number of the phase of the run.
        """
        return None

    def given_orders(self, transformer: int, layer: int, phase: int) -> tuple[tuple[str, str] | None, ...] | None:
        """Of each head of a layer the one of `order_pairs` that it is to take; `None` settles all in the run.

        Args:
            transformer: Number of the transformer in the pipeline.
            layer: Number of the layer in its transformer.
            phase: Number of the phase of the run.
        """
        return None

    def check_grid(self, grid: VideoGrid) -> None:
        """Refuse a geometry that the settings cannot be used at; all can be, but for plans."""

    @property
    def order_pairs(self) -> tuple[tuple[str, str], ...]:
        """Orders of queries and of keys that heads may take, one pair chosen per head.

        Names that `orders.token_order` knows, and for keys also `"score"`. A method with another pair than `order` for
        both has `candidates`.
        """
        if self.order == "auto":
            return AUTO_PAIRS
        return (("gilbert" if self.order == "score" else self.order, self.order),)

    @property
    def orders_heads(self) -> bool:
        """Whether heads have orders of their own, or keys another one than queries."""
        return self.order_pairs != ((self.order, self.order),)

    @property
    def first_order_rows(self) -> int:
        """Query rows of each tile that `first_order` measures the mass of pooled tiles on."""
        # On the bundled model two and four gave the same frames.
        return int(self.first_order)

    @property
    def pools_tiles(self) -> bool:
        """Whether masks have pooled tiles."""
        return False

    @property
    def corrects_mass(self) -> bool:
        """Whether the output is corrected for the mass that masks miss, see `compensation.corrected_attention`."""
        return False

    def candidates(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
        runs: torch.Tensor | None = None,
    ) -> list[BlockMask]:
        """Masks of which each head takes the one that errs least, for queries and keys that may differ in order.

        Args:
            query: `[B, H, S, D]` in the first order of one of `order_pairs`, which may differ between heads.
            key: `[B, H, S, D]` in the second order of the pair.
            value: In the order of `key`.
            grid: Geometry.
            shares_order: bool `[H]`: heads whose keys are in the order of the queries.
            runs: Instead of all query tiles, some runs of video queries, all of the same length: the place of the first
                query of each, int64 `[N]`. `query` and the masks have these runs alone, a tile for each.
        """
        raise ConfigError(f"{type(self).__name__} keeps keys in the order of the queries")

    def select_reordered(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        grid: VideoGrid,
        shares_order: torch.Tensor,
    ) -> BlockMask:
        """Choose key tiles where queries and keys may differ in order; the only one of `candidates`."""
        masks = self.candidates(query, key, value, grid, shares_order)
        assert len(masks) == 1, "a method with several candidates chooses among them"
        return masks[0]

    @property
    def selects_with(self) -> Hashable | None:
        """What methods must agree on to choose tiles in one call of `select_heads`; `None` where each does alone."""
        return None

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
        """`candidates` in one call for heads of several methods, each the only one of its own method.

        What their choices have in common is computed once.

        Args:
            query: `[B, H, S, D]`, like all tensors as in `candidates`.
            key: `[B, H, S, D]`.
            value: `[B, H, S, D]`.
            grid: Geometry.
            shares_order: bool `[H]`.
            configs: Of each mask that is wanted, the method of each head; all agree with this one in `selects_with`,
                which is not `None`.
            runs: As in `candidates`.
        """
        raise ConfigError(f"{type(self).__name__} selects for the heads of one config at a time")

    def query_layout(self, query: torch.Tensor, grid: VideoGrid, runs: torch.Tensor | None) -> TileLayout:
        """Query tiles: of the whole sequence, or a tile for each run."""
        if runs is None:
            return TileLayout(grid.query_segments, self.q_tile)
        return TileLayout((query.shape[2],), query.shape[2] // len(runs))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, with the method's name."""
        return {"method": self.method, **dataclasses.asdict(self)}
