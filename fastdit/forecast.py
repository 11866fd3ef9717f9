"""What a method will compute at a geometry, by the sizes alone: densities, steps and memory before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit.config import AdaptiveConfig, AttentionConfig, CachedConfig, MixedConfig, PyramidConfig, StaticConfig
from fastdit.grid import VideoGrid
from fastdit.plan import DENSE
from fastdit.plan_config import PlanConfig
from fastdit_kernels import TileLayout


@dataclass(frozen=True)
class DensityRange:
    """Share of scores that will be computed: from `low` to `high`, equal where the settings fix it."""

    low: float
    high: float

    @staticmethod
    def mean(parts: list[tuple[float, DensityRange]]) -> DensityRange:
        """Mean of weighted ranges."""
        total = sum(weight for weight, _ in parts)
        low = sum(weight * part.low for weight, part in parts) / total
        return DensityRange(low, sum(weight * part.high for weight, part in parts) / total)


WHOLE = DensityRange(1.0, 1.0)


@dataclass(frozen=True)
class RunForecast:
    """What a run will do.

    Args:
        num_inference_steps: Steps of the run.
        dense_steps: Steps in which every layer is dense.
        dense_layers: Layers that are dense in every step.
        dense_reason: Why the whole run is dense; `None` if it is not.
        sparse_call: Density of the heads that are sparse, in a sparse step.
        sparse_step: Density of a sparse step, its dense layers and heads included.
        run: Density of the whole run.
        methods: Share of the scores of sparse steps that each method, or `"dense"`, answers for, by name.
        note: What the figures depend on.
    """

    num_inference_steps: int
    dense_steps: int
    dense_layers: int
    dense_reason: str | None
    sparse_call: DensityRange
    sparse_step: DensityRange
    run: DensityRange
    methods: dict[str, float]
    note: str


def forecast_run(
    config: AttentionConfig, grid: VideoGrid, num_layers: int, num_heads: int, num_inference_steps: int
) -> RunForecast:
    """Densities of a run, by the rules of the session and the budgets of the method.

    Args:
        config: Method and settings.
        grid: Geometry of a call.
        num_layers: Self-attention layers of a transformer.
        num_heads: Heads of each.
        num_inference_steps: Steps of the run.
    """
    if isinstance(config, PlanConfig):
        return _forecast_plan(config, grid, num_inference_steps)
    schedule = config.schedule
    dense_steps = min(schedule.resolve_dense_steps(num_inference_steps), num_inference_steps)
    sparse = [layer for layer in range(num_layers) if not schedule.is_dense_layer(layer, num_layers)]
    reason = None
    if grid.length < config.min_tokens:
        reason = f"{grid.length} tokens are fewer than min_tokens={config.min_tokens}"
    elif dense_steps == num_inference_steps:
        reason = f"all {num_inference_steps} steps are dense_steps"
    elif not sparse:
        reason = f"all {num_layers} layers are dense_layers"
    known: dict[AttentionConfig, DensityRange] = {}
    methods: dict[str, float] = {}
    parts = []
    for layer in sparse:
        for heads, entry in _groups(config.at_layer(layer, num_layers), num_heads):
            if isinstance(entry, AttentionConfig):
                share = heads / (num_heads * num_layers)
                # Reused masks cost what their source does, less often.
                name = entry.source.method if isinstance(entry, CachedConfig) else entry.method
                methods[name] = methods.get(name, 0.0) + share
                parts.append((share, _known_density(entry, grid, known)))
    call = DensityRange.mean(parts) if parts else WHOLE
    sparse_share = sum(methods.values())
    if sparse_share < 1 - 1e-9:
        methods[DENSE] = 1 - sparse_share
    step = DensityRange.mean([(sparse_share, call), (1 - sparse_share, WHOLE)])
    whole = dense_steps + _dense_refreshes(config, num_inference_steps - dense_steps)
    run = DensityRange.mean([(num_inference_steps - whole, step), (whole, WHOLE)])
    return RunForecast(
        num_inference_steps,
        dense_steps,
        num_layers - len(sparse),
        reason,
        call,
        step,
        WHOLE if reason else run,
        methods,
        "by the sizes of tiles and budgets; where low and high differ, the tensors decide",
    )


def method_density(config: AttentionConfig, grid: VideoGrid) -> DensityRange:
    """Density of one call of a method that is not mixed.

    Query tiles of text see all keys, key tiles of text are always kept, and budgets count whole tiles.

    Args:
        config: The method.
        grid: Geometry.
    """
    if isinstance(config, CachedConfig):
        return method_density(config.source, grid)
    if isinstance(config, StaticConfig):
        empty = torch.empty(1, 1, 1, 1)
        density = config.select(empty, empty, empty, grid).density()
        return DensityRange(density, density)
    if isinstance(config, AdaptiveConfig):
        if config.density is not None:
            low = high = config.density
        else:
            low, high = config.min_density, config.max_density
        own = 1 if config.complement == "all" else -(-config.q_tile // config.kv_tile)
        # Tiles whose members differ too much are kept past the cap.
        most = 1.0 if config.min_similarity is not None else _tiles_density(config, grid, high, own)
        return DensityRange(_tiles_density(config, grid, low, own), most)
    if isinstance(config, PyramidConfig):
        shares, masses = dict(config.level_shares), dict(config.level_mass)
        if masses:
            return DensityRange(_tiles_density(config, grid, config.min_fine, 1), 1.0)
        if shares:
            high = _tiles_density(config, grid, sum(share / 2**level for level, share in shares.items()), 1, True)
            return DensityRange(high, 1.0 if config.min_similarity else high)
        density = _tiles_density(config, grid, config.density, 1)
        return DensityRange(density, density)
    return DensityRange(0.0, 1.0)


def list_bytes(config: AttentionConfig, grid: VideoGrid, num_heads: int) -> int:
    """Bytes of a layer's mask as lists of int32, for one video: the most that a method allocates.

    Args:
        config: The method.
        grid: Geometry.
        num_heads: Heads.
    """
    rows, tiles = _layouts(config, grid)
    return num_heads * rows.num_tiles * (tiles.num_tiles + 1) * 4


def bit_bytes(config: AttentionConfig, grid: VideoGrid, num_heads: int) -> int:
    """Bytes of the same mask kept as bits, as the cached method does where lists find no room; level 0 alone."""
    rows, tiles = _layouts(config, grid)
    return num_heads * rows.num_tiles * -(-tiles.num_tiles // 8)


def _layouts(config: AttentionConfig, grid: VideoGrid) -> tuple[TileLayout, TileLayout]:
    return TileLayout(grid.query_segments, config.q_tile), TileLayout(grid.key_segments, config.kv_tile)


def _tiles_density(
    config: AttentionConfig, grid: VideoGrid, share: float, own: int, text_on_top: bool = False
) -> float:
    """Density where every sparse query tile keeps a share of all key tiles, and what is always kept at least."""
    _, layout = _layouts(config, grid)
    total = layout.num_tiles
    always = grid.key_segments[1] if len(grid.key_segments) > 1 else 0
    forced = -(-always // config.kv_tile)
    budget = max(1, round(share * total)) + (forced if text_on_top else 0)
    kept = min(max(budget, forced + (own if forced or own > 1 else 0)), total)
    tokens = min(always + (kept - forced) * config.kv_tile, grid.length)
    sparse_queries = grid.query_segments[0] / grid.length
    return sparse_queries * tokens / grid.length + 1 - sparse_queries


def _groups(config: AttentionConfig, num_heads: int) -> list[tuple[int, AttentionConfig | str]]:
    """Number of heads of a layer that follow each method; masks of a mixed source may be cached."""
    mixed = config.source if isinstance(config, CachedConfig) else config
    if not isinstance(mixed, MixedConfig):
        return [(num_heads, config)]
    return [(len(group.heads), group.config) for group in mixed.groups(num_heads)]


def _known_density(entry: AttentionConfig, grid: VideoGrid, known: dict[AttentionConfig, DensityRange]) -> DensityRange:
    if entry not in known:
        known[entry] = method_density(entry, grid)
    return known[entry]


def _dense_refreshes(config: AttentionConfig, sparse_steps: int) -> int:
    """Sparse steps that are dense passes: those in which masks are built from the exact mass."""
    if isinstance(config, CachedConfig) and config.mass == "exact":
        return -(-sparse_steps // config.refresh_every)
    return 0


def _forecast_plan(config: PlanConfig, grid: VideoGrid, num_inference_steps: int) -> RunForecast:
    """Densities that the search of a plan measured, at its own size."""
    plan = config.plan
    assert plan is not None, "checked at construction"
    config.check_grid(grid)
    methods: dict[str, float] = {}
    sums, dense_steps, sparse = [], 0, []
    for step in range(num_inference_steps):
        phase = plan.phases[plan.phase_at(step, num_inference_steps)]
        names = [name for table in phase.modes for row in table for name in row]
        values = [value for table in phase.density for row in table for value in row]
        sums.append(sum(values) / len(values))
        dense_steps += all(plan.modes[name] == DENSE for name in names)
        for name, value in zip(names, values, strict=True):
            mode = plan.modes[name]
            method = DENSE if mode == DENSE else mode["method"]
            methods[method] = methods.get(method, 0.0) + 1 / len(names) / num_inference_steps
            if mode != DENSE:
                sparse.append(value)
    steps = [value for value in sums if value < 1.0]
    reason = None if sparse else "every head is dense in every phase of the plan"
    call = sum(sparse) / len(sparse) if sparse else 1.0
    step_density = sum(steps) / len(steps) if steps else 1.0
    run = sum(sums) / len(sums)
    return RunForecast(
        num_inference_steps,
        dense_steps,
        0,
        reason,
        DensityRange(call, call),
        DensityRange(step_density, step_density),
        DensityRange(run, run),
        methods,
        f"as the search of the plan measured them at {plan.grid.length} tokens",
    )
