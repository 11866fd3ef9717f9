"""Random twins of released transformers: their sizes, and that calls of every family run."""

import pytest
import torch

from fastdit.adapters import find_adapter
from fastdit_pipelines.backend_choice import set_fastest_backend
from fastdit_pipelines.random_models import (
    RANDOM_MODELS,
    build_random,
    call_arguments,
    shrink_shape,
    weight_bytes,
)
from fastdit_pipelines.real_shapes import KNOWN_SHAPES

CPU = torch.device("cpu")
# Parameters of the released transformers, in thousands of millions.
PARAMETERS = {"wan-1.3b": 1.42, "wan-14b": 14.3, "cogvideox-5b": 5.57, "hunyuan-video": 12.8, "hunyuan-video-1.5": 8.33}


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_twins_have_as_many_parameters_as_the_models(name):
    assert weight_bytes(KNOWN_SHAPES[name], torch.bfloat16) / 2e9 == pytest.approx(PARAMETERS[name], rel=0.02)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_shrunken_calls_run_and_have_the_geometry_that_was_planned(name):
    true = KNOWN_SHAPES[name]
    size = (*next(iter(RANDOM_MODELS[name].values())), true.num_frames)
    shape, pixels = shrink_shape(true, size, 60, layers=2, heads=1)
    assert (shape.layers, shape.heads, shape.head_dim) == (2, 1, true.head_dim)
    assert shape.settle_size(*pixels) == (pixels, [])
    model = build_random(shape, CPU, torch.float32)
    arguments = call_arguments(shape, pixels, CPU, torch.float32)
    called, planned = find_adapter(model).grid(model, (), arguments), shape.grid(*pixels)
    assert (called.frames, called.height, called.width) == (planned.frames, planned.height, planned.width)
    assert 0 < called.text_length <= planned.text_length or not planned.text_length
    assert len(find_adapter(model).sites(model)) == shape.layers

    def call():
        return model(**arguments)[0]

    with torch.no_grad():
        before = call()
        backend = set_fastest_backend(model, call)
        assert torch.equal(call(), before)
    assert before.isfinite().all()
    assert backend["name"] == "native" or name == "cogvideox-5b"
