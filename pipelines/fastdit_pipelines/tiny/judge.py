"""Compares what a clip shows with what its prompt asked for; no network is involved.

Every dimension gives a verdict and a score in [0, 1], larger is better:

| dimension | verdict | score |
|---|---|---|
| object | every asked object is seen in 90 % of the frames | least share of frames |
| color | nearest palette colour | least share of frames in the asked colour |
| shape | largest overlap is the asked shape's, and at least .75 | least overlap with the asked shape |
| direction | nearest of the four directions, if it moves at all | least cosine with the asked direction, in [0, 1] |
| speed | nearest of the three speeds | 1 - relative error of the travel, least over the objects |
| count | the asked number of objects in 80 % of the frames | share of frames |
| relation | the asked relation in 90 % of the frames | share of frames |
| smoothness | jerk of every path below .5 | 1 / (1 + largest jerk) |
| flicker | level of background and objects changes by less than .02 a frame | 1 - largest mean change |
| background | nearest of the three levels, and grey | 1 - distance to the asked level |

`relation` exists where two objects were asked for with "above" or "left of". `all` means object, color, shape and
direction of every asked object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from fastdit_pipelines.tiny.caption import AskedObject, AskedScene
from fastdit_pipelines.tiny.reading import ClipReading, ObjectReading
from fastdit_pipelines.tiny.world import BACKGROUNDS, DIRECTIONS, SPEEDS

MAIN_DIMENSIONS = ("object", "color", "shape", "direction")
DIMENSIONS = (*MAIN_DIMENSIONS, "speed", "count", "relation", "smoothness", "flicker", "background")
MIN_PRESENCE = 0.9
MIN_COUNT_SHARE = 0.8
MIN_RELATION_SHARE = 0.9
MAX_JERK = 0.5
MAX_CHANGE = 0.02

_Matched = Sequence[tuple[AskedObject, ObjectReading | None]]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Verdicts and scores of one clip, by dimension; the verdicts also hold `all`."""

    verdicts: dict[str, bool]
    scores: dict[str, float]


def judge_clip(reading: ClipReading, asked: AskedScene) -> Judgement:
    """Judge a clip.

    Args:
        reading: From `read_clip`.
        asked: From `parse_caption`.
    """
    pairs = _match(reading, asked)
    verdicts: dict[str, bool] = {}
    scores: dict[str, float] = {}
    each = [_judge_object(item, found) for item, found in pairs]
    for name in each[0]:
        verdicts[name] = all(result[name][0] for result in each)
        scores[name] = min(result[name][1] for result in each)
    share = float(np.mean([count == len(asked.objects) for count in reading.counts]))
    verdicts["count"], scores["count"] = share >= MIN_COUNT_SHARE, share
    if asked.relation not in (None, "and"):
        share = _relation_share(asked.relation, [found for _, found in pairs], len(reading.counts))
        verdicts["relation"], scores["relation"] = share >= MIN_RELATION_SHARE, share
    seen = [found for _, found in pairs if found is not None]
    jerk = max((item.jerk for item in seen), default=float("inf"))
    verdicts["smoothness"], scores["smoothness"] = jerk < MAX_JERK, 1 / (1 + jerk)
    change = max([reading.background_change, *(item.color_change for item in seen)])
    verdicts["flicker"], scores["flicker"] = change < MAX_CHANGE, max(0.0, 1 - change)
    verdicts["background"] = reading.background == asked.background
    scores["background"] = 1 - min(1.0, abs(reading.background_level - BACKGROUNDS[asked.background]))
    verdicts["all"] = all(verdicts[name] for name in MAIN_DIMENSIONS)
    return Judgement(verdicts=verdicts, scores=scores)


def _match(reading: ClipReading, asked: AskedScene) -> _Matched:
    """Give every asked object the reading that fits best, all of them together."""
    wanted = len(asked.objects)
    candidates: list[ObjectReading | None] = [*reading.objects[: wanted + 2]]
    candidates += [None] * max(0, wanted - len(candidates))

    def agreement(choice: Sequence[ObjectReading | None]) -> float:
        points = sum(_agreement(item, found) for item, found in zip(asked.objects, choice, strict=True))
        if asked.relation in (None, "and"):
            return points
        # Only decides between objects that look and move alike.
        return points + 0.1 * _relation_share(asked.relation, list(choice), len(reading.counts))

    best = max(permutations(candidates, wanted), key=agreement)
    return list(zip(asked.objects, best, strict=True))


def _agreement(item: AskedObject, found: ObjectReading | None) -> float:
    if found is None:
        return 0.0
    points = 2.0 * (found.color == item.color) + 1.0 * (found.direction == item.direction)
    # Objects of one colour are told apart by shape first: a wrong direction must not be read as a wrong shape.
    points += 0.5 * (found.speed == item.speed) + found.overlaps[item.shape] + 1.5 * (found.shape == item.shape)
    # Size and presence come last, so that specks lose against objects.
    return points + 0.5 * found.present_share


def _judge_object(item: AskedObject, found: ObjectReading | None) -> dict[str, tuple[bool, float]]:
    if found is None:
        return dict.fromkeys((*MAIN_DIMENSIONS, "speed"), (False, 0.0))
    cosine = float(np.dot(found.velocity, DIRECTIONS[item.direction])) / max(found.travel, 1e-6)
    moves = found.direction is not None
    error = abs(found.travel - SPEEDS[item.speed]) / SPEEDS[item.speed]
    return {
        "object": (found.present_share >= MIN_PRESENCE, found.present_share),
        "color": (found.color == item.color, found.color_share if found.color == item.color else 0.0),
        "shape": (found.shape == item.shape, found.overlaps[item.shape]),
        "direction": (found.direction == item.direction, max(0.0, cosine) if moves else 0.0),
        "speed": (found.speed == item.speed, max(0.0, 1 - error)),
    }


def _relation_share(relation: str | None, found: Sequence[ObjectReading | None], count: int) -> float:
    """Share of all frames in which the first object lies as asked to the second."""
    first, second = found
    if first is None or second is None:
        return 0.0
    axis = 1 if relation == "above" else 0
    places = {frame: center[axis] for frame, center in zip(first.frames, first.centers, strict=True)}
    right = [
        places[frame] < center[axis]
        for frame, center in zip(second.frames, second.centers, strict=True)
        if frame in places
    ]
    return sum(bool(value) for value in right) / count
