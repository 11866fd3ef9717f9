"""The methods that benches compare, each as a config of about a given density."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastdit import AdaptiveConfig, CachedConfig, PyramidConfig, StaticConfig
from fastdit.config import AttentionConfig
from fastdit.forecast import method_density
from fastdit.grid import VideoGrid
from fastdit.schedule import Schedule

# Every step and layer sparse: what a schedule leaves dense costs what dense attention costs.
ALL_SPARSE = Schedule(dense_steps=0, dense_layers=())
# Random queries are longer by this factor, so that attention is as uneven as in a trained model: where it is even,
# the pyramid method needs fewer tiles than it may take, and its call would be timed at a lower density.
SHARPNESS = 4.0


def bench_config(method: str, density: float, grid: VideoGrid) -> AttentionConfig:
    """A method at a density, sparse in every step and layer and at any length.

    Args:
        method: A name of `BENCH_METHODS`.
        density: Share of key tiles. A static window is the largest one found that stays below it.
        grid: Geometry.
    """
    return BENCH_METHODS[method](density, grid)


def refreshes(config: AttentionConfig) -> int:
    """Steps that a mask serves."""
    return config.refresh_every if isinstance(config, CachedConfig) else 1


def _static(density: float, grid: VideoGrid) -> AttentionConfig:
    windows = _growing_windows(grid)
    low, high = 0, len(windows)
    while high - low > 1:
        middle = (low + high) // 2
        fits = method_density(_window(windows[middle]), grid).high <= density
        low, high = (middle, high) if fits else (low, middle)
    return _window(windows[low])


def _growing_windows(grid: VideoGrid) -> list[tuple[int, ...]]:
    """Windows from one cell to the whole video; each is one cell longer than the last, where it reaches least."""
    axes = (grid.frames, grid.height, grid.width)
    sizes = [1, 1, 1]
    found: list[tuple[int, ...]] = [(1, 1, 1)]
    while found[-1] != axes:
        least = min(range(3), key=lambda axis: sizes[axis] / axes[axis])
        sizes[least] += 1
        found.append(tuple(sizes))
    return found


def _window(sizes: tuple[int, ...]) -> StaticConfig:
    return StaticConfig(pattern="window:" + ",".join(map(str, sizes)), schedule=ALL_SPARSE, min_tokens=0)


BENCH_METHODS: dict[str, Callable[[float, VideoGrid], AttentionConfig]] = {
    "adaptive": lambda density, _: AdaptiveConfig(density=density, schedule=ALL_SPARSE, min_tokens=0),
    "pyramid": lambda density, _: PyramidConfig(density=density, schedule=ALL_SPARSE, min_tokens=0),
    "cached": lambda density, _: CachedConfig(
        source=PyramidConfig(density=density, schedule=ALL_SPARSE, min_tokens=0), schedule=ALL_SPARSE, min_tokens=0
    ),
    "static": _static,
}


def random_heads(
    grid: VideoGrid, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Random query, key and value `[B, S, H, D]`; scores have a standard deviation of `SHARPNESS`."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, grid.length, heads, head_dim)
    query, key, value = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    return [query * SHARPNESS, key, value]
