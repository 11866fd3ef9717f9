"""Static patterns: which video tokens see which, from their places (t, y, x) alone.

A pattern is a frozen value; patterns are joined by `|`. `pattern_text` has their text form, `"multi_diagonal|sink:2"`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdit.selectors.reach import full_reach, reach_along, reach_band, reach_frames
from fastdit.validation import check_count, check_positive


@dataclass(frozen=True)
class Pattern:
    """A set of pairs (query token, key token)."""

    name: ClassVar[str] = ""

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Key tokens that at least one of the marked query tokens sees.

        Args:
            cells: Marked query tokens, bool `[N, T, H, W]`, `N` sets at once.

        Returns:
            bool `[N, T, H, W]`.
        """
        raise NotImplementedError

    def __or__(self, other: Pattern) -> Pattern:
        parts = [part for pattern in (self, other) for part in getattr(pattern, "parts", (pattern,))]
        return PatternUnion(tuple(dict.fromkeys(parts)))

    def __str__(self) -> str:
        values = ",".join(str(getattr(self, field.name)) for field in dataclasses.fields(self))
        return f"{self.name}:{values}" if values else self.name


@dataclass(frozen=True)
class PatternUnion(Pattern):
    """Pairs that are in at least one of several patterns.

    Args:
        parts: The patterns.
    """

    parts: tuple[Pattern, ...]

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Key tokens that any part reaches."""
        reached = torch.zeros_like(cells)
        for part in self.parts:
            reached |= part.reach(cells)
        return reached

    def __str__(self) -> str:
        return "|".join(map(str, self.parts))


@dataclass(frozen=True)
class Window(Pattern):
    """A box of tokens around the query, as in NATTEN: `start = clip(place - size // 2, 0, axis - size)` on each axis.

    At a border the box is moved inwards, not cut, so that every query sees equally many keys. An even size reaches one
    further back than ahead; a size of the axis or more is the whole axis.

    Args:
        frames: Size in time.
        height: Size in token rows.
        width: Size in token columns.
    """

    name: ClassVar[str] = "window"

    frames: int = 3
    height: int = 9
    width: int = 9

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_count(f"window {field.name}", getattr(self, field.name), 1)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """One axis after the other: the box is a product."""
        for axis, size in enumerate((self.frames, self.height, self.width), start=1):
            length = cells.shape[axis]
            place = torch.arange(length, device=cells.device)
            start = (place - size // 2).clamp(0, max(0, length - size)).unsqueeze(1)
            cells = reach_along(cells, (place >= start) & (place < start + size), axis)
        return cells


@dataclass(frozen=True)
class Diagonal(Pattern):
    """A band in frame-major order, `|i - j| <= round(half_width * H W)` (SVG's spatial heads, Sparse-vDiT's diagonal).

    Args:
        half_width: In frames.
    """

    name: ClassVar[str] = "diagonal"

    half_width: float = 0.5

    def __post_init__(self) -> None:
        check_positive("diagonal half_width", self.half_width)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """A band over all tokens in a row."""
        radius = round(self.half_width * cells[0, 0].numel())
        return reach_band(cells.flatten(1), radius).view_as(cells)


@dataclass(frozen=True)
class MultiDiagonal(Pattern):
    """The same place in all frames, `|y - y'| <= radius` and `|x - x'| <= radius` (SVG's temporal heads).

    Args:
        radius: Tokens to each side; 0 is the place alone. Cut at borders.
    """

    name: ClassVar[str] = "multi_diagonal"

    radius: int = 1

    def __post_init__(self) -> None:
        check_count("multi_diagonal radius", self.radius)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Bands along both axes of a frame, then all frames."""
        spread = reach_band(cells, self.radius)
        spread = reach_band(spread.mT, self.radius).mT
        return spread.any(1, keepdim=True).expand_as(cells)


@dataclass(frozen=True)
class Stripe(Pattern):
    """The same keys for all queries: `j mod period < width` in frame-major order (Sparse-vDiT's vertical stripes).

    Worth its cost where stripes fill tiles, i.e. in raster order with `width` of a tile or more.

    Args:
        period: Tokens from one stripe to the next.
        width: Tokens of a stripe.
    """

    name: ClassVar[str] = "stripe"

    period: int = 1024
    width: int = 128

    def __post_init__(self) -> None:
        check_count("stripe period", self.period, 1)
        check_count("stripe width", self.width, 1)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """The stripes."""
        place = torch.arange(cells[0].numel(), device=cells.device)
        return (place % self.period < self.width).view_as(cells[0]).expand_as(cells)


@dataclass(frozen=True)
class Radial(Pattern):
    """A band around the same place that narrows with the frame distance `d`, as in Radial Attention (2506.19852).

    Frames with `d <= 1` see each other fully. Beyond, with `bits(n)` the length of `n` in binary, a token of place
    `p = y W + x` sees `|p - p'| <= max(w decay, min_width)`, `w = 2^(bits(H W) - bits(d))`. Where `w` falls below
    `min_width` only distances divisible by `floor(min_width / w)` are kept. Radial also keeps the first frame for some
    models: `"radial|sink"`.

    Args:
        decay: Factor on the half-width; the default is what Radial uses for Wan 2.1.
        min_width: Least half-width, in tokens.
    """

    name: ClassVar[str] = "radial"

    decay: float = 0.2
    min_width: int = 128

    def __post_init__(self) -> None:
        check_positive("radial decay", self.decay)
        check_count("radial min_width", self.min_width, 1)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Full neighbouring frames, then one band for all distances of equal width."""
        frames, frame_tokens = cells.shape[1], cells[0, 0].numel()
        time = torch.arange(frames, device=cells.device)
        distance = (time[:, None] - time).abs()
        reached = full_reach(cells, distance <= 1)
        for bits in range(2, (frames - 1).bit_length() + 1):
            width: float = 2.0 ** (frame_tokens.bit_length() - bits)
            far = (distance >= 1 << (bits - 1)) & (distance < 1 << bits)
            if width < self.min_width:
                far &= distance % int(self.min_width / width) == 0
            spread = reach_frames(cells, far).flatten(2)
            reached |= reach_band(spread, int(max(width * self.decay, self.min_width))).view_as(cells)
        return reached


@dataclass(frozen=True)
class Frames(Pattern):
    """The query's own frame and `k` reference frames, `floor(i T / k)` (Efficient-vDiT's attention tile).

    Args:
        references: Number of reference frames `k`, spread evenly from the first one on.
    """

    name: ClassVar[str] = "frames"

    references: int = 1

    def __post_init__(self) -> None:
        check_count("frames references", self.references)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Whole frames."""
        frames, wanted = cells.shape[1], self.references
        relation = torch.eye(frames, dtype=torch.bool, device=cells.device)
        relation[:, [index * frames // wanted for index in range(wanted)]] = True
        return full_reach(cells, relation)


@dataclass(frozen=True)
class Sink(Pattern):
    """The first frames, for all queries; text is kept by every pattern.

    Args:
        frames: How many.
    """

    name: ClassVar[str] = "sink"

    frames: int = 1

    def __post_init__(self) -> None:
        check_count("sink frames", self.frames, 1)

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Whole frames."""
        first = torch.arange(cells.shape[1], device=cells.device) < self.frames
        return first.view(1, -1, 1, 1).expand_as(cells)


@dataclass(frozen=True)
class Skip(Pattern):
    """No pair: only what is kept in any case, the query's own tiles and text."""

    name: ClassVar[str] = "skip"

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        return torch.zeros_like(cells)


@dataclass(frozen=True)
class Dense(Pattern):
    """All pairs."""

    name: ClassVar[str] = "dense"

    def reach(self, cells: torch.Tensor) -> torch.Tensor:
        """Everything."""
        return torch.ones_like(cells)
