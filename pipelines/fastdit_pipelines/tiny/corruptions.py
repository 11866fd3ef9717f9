"""Clips that are wrong in one known way, to check the judge with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from fastdit_pipelines.tiny.world import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SPEEDS, MovingObject, Scene, render

Size = tuple[int, int, int]


def _next(options: list[str], value: str) -> str:
    return options[(options.index(value) + 1) % len(options)]


def _change_first(scene: Scene, size: Size, **changes: str) -> torch.Tensor:
    first = dataclasses.replace(scene.objects[0], **changes)  # type: ignore[arg-type]  # only words are changed
    return render(dataclasses.replace(scene, objects=(first, *scene.objects[1:])), *size)


def _wrong_color(scene: Scene, size: Size) -> torch.Tensor:
    return _change_first(scene, size, color=_next(list(COLORS), scene.objects[0].color))


def _wrong_shape(scene: Scene, size: Size) -> torch.Tensor:
    return _change_first(scene, size, shape=_next(list(SHAPES), scene.objects[0].shape))


def _wrong_direction(scene: Scene, size: Size) -> torch.Tensor:
    return render(scene, *size).flip(0)


def _frozen(scene: Scene, size: Size) -> torch.Tensor:
    return render(scene, *size)[:1].expand(size[0], -1, -1, -1)


def _flickering(scene: Scene, size: Size) -> torch.Tensor:
    frames = render(scene, *size)
    frames[::2] *= 0.8
    return frames


def _missing(scene: Scene, size: Size) -> torch.Tensor:
    """The first object is gone in the second half."""
    frames = render(scene, *size)
    rest = scene.objects[1:]
    half = size[0] // 2
    frames[half:] = render(dataclasses.replace(scene, objects=rest), *size)[half:]
    return frames


def _wrong_count(scene: Scene, size: Size) -> torch.Tensor:
    """One object more, standing in the emptiest corner."""
    radius = 0.1
    corners = [(x, y) for x in (0.12, 0.88) for y in (0.12, 0.88)]

    def clearance(corner: tuple[float, float]) -> float:
        return min(_nearest(item, corner) for item in scene.objects)

    extra = MovingObject(
        shape="square",
        color=_next(list(COLORS), scene.objects[0].color),
        direction="up",
        speed="slowly",
        radius=radius,
        start=max(corners, key=clearance),
    )
    alone = render(Scene(objects=(extra,), background=scene.background), *size)[:1]
    empty = render(Scene(objects=(), background=scene.background), *size)[:1]
    frames = render(scene, *size)
    return torch.where((alone - empty).abs().amax(1, keepdim=True) > 0.02, alone, frames)


def _nearest(item: MovingObject, corner: tuple[float, float]) -> float:
    """Distance of a corner to an object's path, at its ends and in the middle."""
    step = DIRECTIONS[item.direction]
    places = [
        (item.start[0] + step[0] * SPEEDS[item.speed] * part, item.start[1] + step[1] * SPEEDS[item.speed] * part)
        for part in (0.0, 0.5, 1.0)
    ]
    return min(max(abs(x - corner[0]), abs(y - corner[1])) for x, y in places) - item.radius


def _swapped(scene: Scene, size: Size) -> torch.Tensor:
    """The two objects change places: the picture is mirrored along the relation, the motion along it too."""
    axis = 2 if scene.relation == "above" else 3
    return render(scene, *size).flip(axis)


def _wrong_background(scene: Scene, size: Size) -> torch.Tensor:
    return render(dataclasses.replace(scene, background=_next(list(BACKGROUNDS), scene.background)), *size)


def _jerky(scene: Scene, size: Size) -> torch.Tensor:
    """Every frame is held for three."""
    frames = render(scene, *size)
    return frames[torch.arange(size[0]) // 3 * 3]


# What is done to the clip, and the dimension that must notice.
CORRUPTIONS: dict[str, tuple[Callable[[Scene, Size], torch.Tensor], str]] = {
    "wrong color": (_wrong_color, "color"),
    "wrong shape": (_wrong_shape, "shape"),
    "wrong direction": (_wrong_direction, "direction"),
    "frozen": (_frozen, "direction"),
    "flickering": (_flickering, "flicker"),
    "missing object": (_missing, "object"),
    "wrong count": (_wrong_count, "count"),
    "swapped relation": (_swapped, "relation"),
    "wrong background": (_wrong_background, "background"),
    "jerky": (_jerky, "smoothness"),
}


def applies(name: str, scene: Scene) -> bool:
    """Whether a corruption makes a scene wrong: swapping needs objects that differ, turning back as well."""
    if name == "wrong direction" and len(scene.objects) == 2:
        # Two alike objects moving in opposite directions are the same scene backwards.
        first, second = scene.objects
        return (first.color, first.shape) != (second.color, second.shape)
    if name != "swapped relation":
        return True
    if len(scene.objects) < 2 or scene.relation == "and":
        return False
    first, second = scene.objects
    return (first.color, first.shape) != (second.color, second.shape)
