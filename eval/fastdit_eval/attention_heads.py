"""Synthetic attention heads with known structure, for comparing selectors.

A token is described by features of its place, of its segment and of a random field; queries and keys carry the same
features, as rotary embeddings and content do in a trained model. Queries are then scaled (a temperature) so that a
stated share of the keys carries 95 % of the softmax mass, mean over rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastdit import VideoGrid
from fastdit.attention_profile import attention_rows, mass_share, sample_rows, token_places
from fastdit.errors import ConfigError

# Seeds to develop with, and seeds kept for checking.
SEEDS = (0, 1)
CHECK_SEEDS = (1000, 1001)
MASS = 0.95
CALIBRATION_ROWS = 64
BISECTIONS = 20


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """Queries, keys and values of some heads.

    Args:
        name: Family or layer they belong to.
        grid: Geometry.
        query: `[1, H, S, D]` fp32 in frame-major order, after norms and RoPE.
        key: Likewise.
        value: Likewise.
    """

    name: str
    grid: VideoGrid
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class HeadFamily:
    """How heads of one kind are made.

    Args:
        share: Share of keys that carries 95 % of the mass.
        reach: Standard deviations of the place kernel in tokens along t, y, x; `None` ignores an axis.
        place: Weight of the place.
        segments: Weight of the segment of a token (cells around random points, each with a direction of its own).
        hot: Weight of hot keys: a tenth of the tokens, scattered, wanted by every query.
        field: Weight of a smooth random field, the content that neighbours have in common.
        tail: Standard deviation of the log of a random gain of each key; large values give few keys most of the mass.
        noise: Weight of white noise.
    """

    share: float
    reach: tuple[float | None, float | None, float | None] = (None, None, None)
    place: float = 0.0
    segments: float = 0.0
    hot: float = 0.0
    field: float = 0.3
    tail: float = 0.0
    noise: float = 0.3


FAMILIES: dict[str, HeadFamily] = {
    "local": HeadFamily(share=0.03, reach=(1.5, 2.0, 2.0), place=1.0),
    "temporal": HeadFamily(share=0.05, reach=(None, 1.5, 1.5), place=1.0),
    "frame": HeadFamily(share=0.15, reach=(0.7, None, None), place=1.0),
    "stripe": HeadFamily(share=0.10, hot=1.0),
    "cluster": HeadFamily(share=0.15, segments=1.0),
    "mixed": HeadFamily(share=0.25, reach=(1.5, 3.0, 3.0), place=1.0, segments=0.7, hot=0.5),
    "wide": HeadFamily(share=0.35, reach=(3.0, 6.0, 6.0), place=1.0),
    "diffuse": HeadFamily(share=0.75, field=1.0),
    "heavy_tailed": HeadFamily(share=0.08, field=1.0, tail=1.0),
}
NUM_SEGMENTS = 12
HOT_SHARE = 0.1


def make_heads(name: str, grid: VideoGrid, head_dim: int = 64, seeds: tuple[int, ...] = SEEDS) -> AttentionHeads:
    """Heads of a family, one for each seed.

    Args:
        name: Key of `FAMILIES`.
        grid: Geometry; text is not supported.
        head_dim: Channels, a multiple of 8 and at least 16.
        seeds: Seeds of the heads; the same seed gives the same head.

    Raises:
        ConfigError: The name, the grid or `head_dim` is not accepted.
    """
    if name not in FAMILIES or grid.text_length or head_dim < 16 or head_dim % 8:
        raise ConfigError(
            f"family {name!r}, text_length={grid.text_length}, head_dim={head_dim}: accepted are "
            f"{', '.join(FAMILIES)} without text, and a multiple of 8 from 16 on"
        )
    heads = [_make_head(FAMILIES[name], grid, head_dim, seed) for seed in seeds]
    query, key, value = (torch.stack(parts).unsqueeze(0) for parts in zip(*heads, strict=True))
    return AttentionHeads(name=name, grid=grid, query=query, key=key, value=value)


def _make_head(
    family: HeadFamily, grid: VideoGrid, head_dim: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[S, D]` of one head."""
    rng = torch.Generator().manual_seed(seed)
    places = token_places(torch.arange(grid.length), grid)
    dims = head_dim // 4
    axes = [_axis_features(places[:, axis], reach, dims) for axis, reach in enumerate(family.reach)]
    # Channels: three quarters for the place, one for content. Directions of content are random, so they may overlap.
    shared = math.sqrt(family.field) * _field(places, grid, dims, rng)
    segment = _unit(torch.randn(NUM_SEGMENTS, dims, generator=rng))[_segments(places, grid, rng)]
    wanted = _unit(torch.randn(dims, generator=rng))
    is_hot = torch.rand(grid.length, 1, generator=rng) < HOT_SHARE
    query_content = shared + math.sqrt(family.segments) * segment + math.sqrt(family.hot) * wanted
    key_content = shared + math.sqrt(family.segments) * segment + math.sqrt(family.hot) * wanted * is_hot
    key_content = key_content * (family.tail * torch.randn(grid.length, 1, generator=rng)).exp()
    parts = []
    for own in (query_content, key_content):
        structure = torch.cat([math.sqrt(family.place) * axis for axis in axes] + [own], 1)
        parts.append(structure + family.noise * torch.randn(structure.shape, generator=rng) / math.sqrt(dims))
    value = 0.7 * _field(places, grid, head_dim, rng) * math.sqrt(head_dim)
    value = value + 0.7 * torch.randn(value.shape, generator=rng)
    query, key = parts
    return query * _temperature(query, key, family.share), key, value


def _axis_features(places: torch.Tensor, reach: float | None, dims: int) -> torch.Tensor:
    """Features whose product is about `exp(-(a - b)^2 / (2 reach^2))`: cosines at the quantiles of a half-normal."""
    if reach is None:
        return torch.zeros(len(places), dims)
    pairs = dims // 2
    quantiles = (torch.arange(pairs) + 0.5) / pairs
    angles = places.unsqueeze(1) * torch.erfinv(quantiles) * math.sqrt(2) / reach
    return torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(pairs)


def _field(places: torch.Tensor, grid: VideoGrid, dims: int, rng: torch.Generator) -> torch.Tensor:
    """A smooth random vector field of mean square norm 1, from 32 plane waves: `[S, dims]`."""
    size = torch.tensor([grid.frames, grid.height, grid.width], dtype=torch.float32)
    waves = torch.randn(3, 32, generator=rng) * 2 * math.pi / size.unsqueeze(1)
    phase = torch.rand(32, generator=rng) * 2 * math.pi
    mixed = (places @ waves + phase).cos() @ torch.randn(32, dims, generator=rng)
    return mixed / mixed.square().sum(1).mean().sqrt()


def _segments(places: torch.Tensor, grid: VideoGrid, rng: torch.Generator) -> torch.Tensor:
    """Number of the nearest of some random points, distances in units of the grid: `[S]`."""
    size = torch.tensor([grid.frames, grid.height, grid.width], dtype=torch.float32)
    return torch.cdist(places / size, torch.rand(NUM_SEGMENTS, 3, generator=rng)).argmin(1)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def _temperature(query: torch.Tensor, key: torch.Tensor, share: float) -> float:
    """Factor on the queries at which `share` of the keys carries 95 % of the mass, by bisection of its log."""
    rows = sample_rows(len(query), CALIBRATION_ROWS)
    low, high = -4.0, 8.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        scaled = (query * math.exp(middle)).view(1, len(query), 1, -1)
        seen = attention_rows(scaled, key.view(1, len(key), 1, -1), rows)
        low, high = (middle, high) if float(mass_share(seen, MASS).mean()) > share else (low, middle)
    return math.exp((low + high) / 2)
