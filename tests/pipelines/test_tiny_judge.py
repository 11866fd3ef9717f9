"""The judge on clips of known content: right on clean ones, and every corruption is noticed where it should be."""

import dataclasses
import math
import time

import pytest
import torch

from fastdit.errors import InvalidInputError
from fastdit_pipelines.tiny.caption import asked_by, parse_caption
from fastdit_pipelines.tiny.corruptions import CORRUPTIONS
from fastdit_pipelines.tiny.judge import DIMENSIONS, judge_clip
from fastdit_pipelines.tiny.reading import read_clip
from fastdit_pipelines.tiny.shape_match import CENTROID_OFFSETS, UNIT_AREAS, shape_overlaps
from fastdit_pipelines.tiny.validate_judge import autoencoder, validate
from fastdit_pipelines.tiny.world import SHAPES, MovingObject, Scene, SceneSampler, render, signed_distance


def item(**changes):
    settings = {
        "shape": "circle",
        "color": "orange",
        "direction": "left",
        "speed": "slowly",
        "radius": 0.18,
        "start": (0.6, 0.25),
    }
    return MovingObject(**{**settings, **changes})


def one(**changes):
    return Scene(objects=(item(**changes),), background="dark")


def judged(frames, scene):
    return judge_clip(read_clip(frames), asked_by(scene))


def test_captions_are_parsed_back():
    sampler = SceneSampler(3, two_object_share=0.5)
    for _ in range(300):
        scene = sampler.sample()
        asked = asked_by(scene)
        assert asked.background == scene.background
        assert asked.relation == (scene.relation if len(scene.objects) == 2 else None)
        for wanted, drawn in zip(asked.objects, scene.objects, strict=True):
            assert dataclasses.asdict(wanted).items() <= dataclasses.asdict(drawn).items()
    assert parse_caption(" A red  circle moving LEFT on a dark background. ") == parse_caption(
        "a red circle moving left on a dark background"
    )
    with pytest.raises(InvalidInputError, match="grammar"):
        parse_caption("a cat on a mat")


@pytest.mark.slow
def test_clean_clips_are_judged_right_and_corruptions_noticed():
    report = validate(200, seed=20, corrupted_share=0.06)
    assert report["clean"].keys() == {*DIMENSIONS, "all"}
    assert min(report["clean"].values()) >= 0.99, report["clean"]
    assert report["noticed"].keys() == CORRUPTIONS.keys()
    assert min(report["noticed"].values()) == 1.0, report["noticed"]


@pytest.mark.slow
def test_clips_that_went_through_the_autoencoder_are_judged_right():
    report = validate(6, seed=5, corrupted_share=0.0, vae=autoencoder(), sizes=((9, 64, 64), (9, 128, 128)))
    assert report["clean"]["all"] == 1.0, report["clean"]


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_and_centroids_of_the_templates_are_those_of_the_outlines(shape):
    grid = (torch.arange(600) + 0.5) / 200 - 1.5
    y, x = grid.view(-1, 1), grid.view(1, -1)
    inside = signed_distance(shape, x, y, 1.0) <= 0
    assert inside.sum() / 200**2 == pytest.approx(UNIT_AREAS[shape], rel=0.01)
    rows = y.expand(600, 600)[inside]
    assert rows.mean() == pytest.approx(CENTROID_OFFSETS.get(shape, 0.0), abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_shape_overlaps_its_own_template_most(shape):
    axis = torch.arange(48) + 0.5 - 24
    cover = (0.5 - signed_distance(shape, axis.view(1, -1), axis.view(-1, 1), 16)).clamp(0, 1)
    overlaps = shape_overlaps(cover.numpy())
    assert overlaps[shape] > 0.97
    assert max((value, name) for name, value in overlaps.items())[1] == shape


def test_speed_and_path_are_measured():
    reading = read_clip(render(one(speed="quickly", start=(0.75, 0.3)), 17, 64, 96))
    (found,) = reading.objects
    assert found.velocity == pytest.approx((-0.48, 0.0), abs=0.01)
    assert (found.direction, found.speed, found.color, found.shape) == ("left", "quickly", "orange", "circle")
    assert math.isclose(found.present_share, 1.0)
    assert reading.counts == (1,) * 17
    assert reading.background == "dark"


def test_touching_objects_of_two_colours_are_two():
    pair = Scene(
        objects=(item(start=(0.6, 0.3)), item(color="blue", shape="square", start=(0.6, 0.62))), background="dark"
    )
    found = read_clip(render(pair, 9, 96, 96)).objects
    assert {entry.color for entry in found} == {"orange", "blue"}


def test_alike_objects_are_told_apart_by_the_relation():
    pair = Scene(objects=(item(), item(start=(0.5, 0.75))), background="gray", relation="above")
    verdicts = judged(render(pair, 9, 64, 64), pair).verdicts
    assert verdicts["all"]
    assert verdicts["relation"]
    assert verdicts["count"]


@pytest.mark.parametrize(
    "frames", [torch.full((5, 3, 64, 64), 0.45), torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))]
)
def test_clips_of_nothing_have_no_object(frames):
    result = judged(frames, one())
    assert not any(result.verdicts[name] for name in ("object", "color", "shape", "direction", "all", "count"))
    assert all(0.0 <= score <= 1.0 for score in result.scores.values())


def test_a_blob_is_no_shape():
    blob = render(one(), 9, 96, 96)
    bar = (torch.arange(96) - 24).abs() < 3
    blob = torch.where(
        bar.view(1, 1, -1, 1), torch.tensor((0.97, 0.51, 0.09)).view(1, 3, 1, 1), 0.08 * torch.ones_like(blob)
    )
    blob[..., :8] = 0.08
    blob[..., -8:] = 0.08
    assert read_clip(blob).objects[0].shape is None


@pytest.mark.parametrize(
    "frames", [torch.zeros(1, 3, 64, 64), torch.zeros(5, 64, 64, 3), torch.full((5, 3, 64, 64), 255.0)]
)
def test_what_is_no_clip_is_refused(frames):
    with pytest.raises(InvalidInputError, match="accepted"):
        read_clip(frames)


def test_reading_is_fast():
    frames = render(SceneSampler(1, two_object_share=1.0).sample(), 33, 128, 128)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        read_clip(frames)
        seconds.append(time.process_time() - start)
    # A fifth of a second on a slow core; the bound is for a reading that has become far dearer, not for the machine.
    assert min(seconds) < 2.0
