"""The procedural world of the bundled model: moving shapes with captions.

A *scene* is one or two coloured shapes on a plain background, each moving along a straight line. All lengths are
fractions of the shorter frame side and all times fractions of the clip, so one scene can be rendered at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.13, 0.15),
    "green": (0.16, 0.68, 0.22),
    "blue": (0.16, 0.32, 0.90),
    "yellow": (0.96, 0.84, 0.14),
    "purple": (0.60, 0.20, 0.74),
    "orange": (0.97, 0.51, 0.09),
}
BACKGROUNDS: dict[str, float] = {"dark": 0.08, "gray": 0.45, "light": 0.92}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS: dict[str, float] = {"slowly": 0.16, "": 0.32, "quickly": 0.48}
RADIUS = 0.2
# Of each of two objects: both fit into a half of the frame with room to move.
PAIR_RADIUS = 0.17
# Half width of the arms of a cross, over its radius.
CROSS_ARM = 0.42
MARGIN = 0.02
# What joins two noun phrases; "and" says nothing about places.
RELATIONS = ("and", "above", "left of")
HELD_OUT_MODULUS = 7


@dataclass(frozen=True, kw_only=True)
class MovingObject:
    """One shape: what it looks like and the line its centre follows.

    Args:
        shape: A member of `SHAPES`.
        color: A key of `COLORS`.
        direction: A key of `DIRECTIONS`.
        speed: A key of `SPEEDS`; its value is the distance covered over the clip.
        radius: Half extent, as a fraction of the shorter side.
        start: Centre `(x, y)` in the first frame, as fractions of the frame.
    """

    shape: str
    color: str
    direction: str
    speed: str
    radius: float
    start: tuple[float, float]

    def describe(self) -> str:
        """Noun phrase of the caption grammar: `a|an <color> <shape> moving [<speed>] <direction>`."""
        article = "an" if self.color[0] in "aeiou" else "a"
        words = [article, self.color, self.shape, "moving", self.speed, self.direction]
        return " ".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two moving objects on a background.

    Args:
        objects: One or two.
        background: A key of `BACKGROUNDS`.
        relation: A member of `RELATIONS`: how the first object lies to the second, in every frame.
    """

    objects: tuple[MovingObject, ...]
    background: str
    relation: str = "and"

    @property
    def caption(self) -> str:
        """`<object> [and|above|left of <object>] on a <background> background`."""
        return (
            f" {self.relation} ".join(item.describe() for item in self.objects) + f" on a {self.background} background"
        )


def is_held_out(shape: str, color: str, direction: str) -> bool:
    """Whether the combination is kept out of training (one in `HELD_OUT_MODULUS`), for judging generalisation."""
    index = SHAPES.index(shape) * 1 + list(COLORS).index(color) * 2 + list(DIRECTIONS).index(direction) * 3
    return index % HELD_OUT_MODULUS == 0


def combinations(held_out: bool) -> list[tuple[str, str, str]]:
    """All `(shape, color, direction)` triples on one side of the training split."""
    return [triple for triple in product(SHAPES, COLORS, DIRECTIONS) if is_held_out(*triple) == held_out]


class SceneSampler:
    """Draws scenes from its own random stream.

    Args:
        seed: Seed of the stream; equal seeds give equal scenes.
        held_out: Draw from the combinations kept out of training instead of the training ones.
        two_object_share: Probability of a scene with two objects.
    """

    def __init__(self, seed: int, *, held_out: bool = False, two_object_share: float = 0.3) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._triples = combinations(held_out)
        self._two_object_share = two_object_share

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self._generator).item()

    def _choice(self, options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=self._generator))]

    def _object(
        self,
        triples: Sequence[tuple[str, str, str]],
        radius: float = RADIUS,
        lane: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0)),
    ) -> MovingObject:
        """An object that stays inside `lane` (ranges of x and y) for the whole clip."""
        shape, color, direction = triples[int(torch.randint(len(triples), (), generator=self._generator))]
        speed = self._choice(list(SPEEDS))
        start = []
        for step, (low, high) in zip(DIRECTIONS[direction], lane, strict=True):
            travel = step * SPEEDS[speed]
            first = low + radius + MARGIN + max(0.0, -travel)
            last = high - radius - MARGIN - max(0.0, travel)
            start.append(self._uniform(first, last))
        return MovingObject(
            shape=shape, color=color, direction=direction, speed=speed, radius=radius, start=(start[0], start[1])
        )

    def sample(self) -> Scene:
        """Draw one scene; two objects move along disjoint lanes and never overlap."""
        background = self._choice(list(BACKGROUNDS))
        if self._uniform(0.0, 1.0) >= self._two_object_share:
            return Scene(objects=(self._object(self._triples),), background=background)
        # Lanes lie along the motion: horizontal ones above each other, or vertical ones side by side.
        stacked = self._uniform(0.0, 1.0) < 0.5
        along = ("left", "right") if stacked else ("up", "down")
        triples = [triple for triple in self._triples if triple[2] in along]
        whole, halves = (0.0, 1.0), ((0.0, 0.5), (0.5, 1.0))
        lanes = [(whole, half) if stacked else (half, whole) for half in halves]
        pair = [self._object(triples, PAIR_RADIUS, lane) for lane in lanes]
        # The object named first is the upper or left one, also after "and": a small model need not choose.
        relation = "and" if self._uniform(0.0, 1.0) < 0.5 else "above" if stacked else "left of"
        return Scene(objects=(pair[0], pair[1]), background=background, relation=relation)


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance to the outline, negative inside; `x`, `y` relative to the centre, y downwards."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    if shape == "triangle":
        half_width, bottom = math.cos(math.pi / 6), 0.75 * radius
        slanted = x.abs() * half_width - y * 0.5 - 0.5 * radius * 1.0
        return torch.maximum(y - bottom, slanted - 0.06 * radius)
    if shape == "cross":
        arm = CROSS_ARM * radius
        upright = torch.maximum(x.abs() - arm, y.abs() - radius)
        level = torch.maximum(x.abs() - radius, y.abs() - arm)
        return torch.minimum(upright, level)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def render(scene: Scene, num_frames: int, height: int, width: int) -> torch.Tensor:
    """Draw a scene with anti-aliased edges.

    Args:
        scene: What to draw.
        num_frames: Frames `F`.
        height: Pixels `H`.
        width: Pixels `W`.

    Returns:
        Frames `[F, 3, H, W]`, float32 in [0, 1].
    """
    side = min(height, width)
    rows = torch.arange(height, dtype=torch.float32).view(1, -1, 1) + 0.5
    columns = torch.arange(width, dtype=torch.float32).view(1, 1, -1) + 0.5
    time = torch.linspace(0, 1, num_frames) if num_frames > 1 else torch.zeros(1)
    # A faint vertical gradient keeps the background from being a constant.
    shade = BACKGROUNDS[scene.background] + 0.06 * (rows / height - 0.5)
    frames = shade.expand(num_frames, height, width).unsqueeze(1).repeat(1, 3, 1, 1)
    for item in scene.objects:
        dx, dy = DIRECTIONS[item.direction]
        travel = SPEEDS[item.speed] * side
        center_x = (item.start[0] * width + dx * travel * time).view(-1, 1, 1)
        center_y = (item.start[1] * height + dy * travel * time).view(-1, 1, 1)
        distance = signed_distance(item.shape, columns - center_x, rows - center_y, item.radius * side)
        cover = (0.5 - distance).clamp(0, 1).unsqueeze(1)
        color = torch.tensor(COLORS[item.color]).view(1, 3, 1, 1)
        frames = frames * (1 - cover) + color * cover
    return frames
