"""Reads a caption of the world back into what it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastdit.errors import InvalidInputError
from fastdit_pipelines.tiny.world import BACKGROUNDS, COLORS, DIRECTIONS, RELATIONS, SHAPES, SPEEDS, Scene


@dataclass(frozen=True, kw_only=True)
class AskedObject:
    """One noun phrase of a caption.

    Args:
        shape: A member of `SHAPES`.
        color: A key of `COLORS`.
        direction: A key of `DIRECTIONS`.
        speed: A key of `SPEEDS`.
    """

    shape: str
    color: str
    direction: str
    speed: str


@dataclass(frozen=True, kw_only=True)
class AskedScene:
    """What a caption asks for; radii and places are left open.

    Args:
        objects: One or two.
        background: A key of `BACKGROUNDS`.
        relation: A member of `RELATIONS` for two objects, `None` for one.
    """

    objects: tuple[AskedObject, ...]
    background: str
    relation: str | None = None


def asked_by(scene: Scene) -> AskedScene:
    """What the caption of `scene` asks for."""
    return parse_caption(scene.caption)


def parse_caption(caption: str) -> AskedScene:
    """Parse `<object> [and|above|left of <object>] on a <background> background`.

    Args:
        caption: Upper and lower case, extra spaces and a final full stop do not matter.

    Raises:
        InvalidInputError: It does not follow the grammar.
    """
    text = " ".join(caption.lower().strip().removesuffix(".").split())
    phrase = (
        rf"an? ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) moving "
        rf"(?:({'|'.join(filter(None, SPEEDS))}) )?({'|'.join(DIRECTIONS)})"
    )
    pattern = rf"{phrase}(?: ({'|'.join(RELATIONS)}) {phrase})? on a ({'|'.join(BACKGROUNDS)}) background"
    match = re.fullmatch(pattern, text)
    if match is None:
        raise InvalidInputError(
            f"prompt {caption!r} is not in the grammar of the bundled model: accepted is '<object> [and|above|left of "
            "<object>] on a dark|gray|light background' with '<object>' such as 'a red circle moving slowly left'"
        )
    words = match.groups()
    objects = [_asked(words[0:4])]
    if words[4] is not None:
        objects.append(_asked(words[5:9]))
    return AskedScene(objects=tuple(objects), background=words[9], relation=words[4])


def _asked(words: tuple[str | None, ...]) -> AskedObject:
    color, shape, speed, direction = (word or "" for word in words)
    return AskedObject(shape=shape, color=color, direction=direction, speed=speed)
