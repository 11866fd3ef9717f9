import pytest
import torch

from fastdit_pipelines.tiny.world import (
    COLORS,
    DIRECTIONS,
    MARGIN,
    SHAPES,
    SPEEDS,
    MovingObject,
    Scene,
    SceneSampler,
    combinations,
    is_held_out,
    render,
)


def scene(**changes):
    settings = {
        "shape": "circle",
        "color": "orange",
        "direction": "left",
        "speed": "slowly",
        "radius": 0.15,
        "start": (0.6, 0.5),
        **changes,
    }
    return Scene(objects=(MovingObject(**settings),), background="dark")


def test_captions_follow_the_grammar():
    assert scene().caption == "an orange circle moving slowly left on a dark background"
    assert scene(color="red", speed="").caption == "a red circle moving left on a dark background"


def test_the_split_covers_everything_once_and_keeps_every_word_in_training():
    training, held_out = combinations(False), combinations(True)
    assert not set(training) & set(held_out)
    assert len(training) + len(held_out) == len(SHAPES) * len(COLORS) * len(DIRECTIONS)
    for position, words in enumerate((SHAPES, COLORS, DIRECTIONS)):
        assert {triple[position] for triple in training} == set(words)
    assert all(is_held_out(*triple) for triple in held_out)


def test_scenes_repeat_by_seed_and_stay_inside_the_frame():
    first = [SceneSampler(4).sample() for _ in range(3)]
    assert first == [SceneSampler(4).sample() for _ in range(3)]
    sampler = SceneSampler(5, two_object_share=0.5)
    for _ in range(200):
        for item in sampler.sample().objects:
            for axis in (0, 1):
                travel = DIRECTIONS[item.direction][axis] * SPEEDS[item.speed]
                ends = (item.start[axis], item.start[axis] + travel)
                assert min(ends) >= item.radius + MARGIN - 1e-6
                assert max(ends) <= 1 - item.radius - MARGIN + 1e-6


def test_the_object_named_first_is_the_upper_or_left_one():
    sampler = SceneSampler(0, two_object_share=1.0)
    relations = set()
    for scene in (sampler.sample() for _ in range(200)):
        axis = 1 if scene.objects[0].direction in ("left", "right") else 0
        assert scene.objects[0].start[axis] < scene.objects[1].start[axis]
        relations.add(scene.relation)
    assert relations == {"and", "above", "left of"}


def test_rendering_is_the_same_scene_at_every_size():
    small, large = render(scene(), 5, 32, 32), render(scene(), 9, 64, 64)[::2]
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert (small - pooled).abs().mean() < 0.01
    assert small.min() >= 0
    assert small.max() <= 1


def test_the_object_moves_the_way_the_caption_says():
    frames = render(scene(direction="down", speed="quickly", start=(0.5, 0.25)), 2, 64, 64)
    red = frames[:, 0] - frames[:, 2]
    rows = (red.sum(2) * torch.arange(64)).sum(1) / red.sum((1, 2))
    assert rows[1] - rows[0] == pytest.approx(0.48 * 64, abs=0.5)
