"""Lengths of released models against the table of them, and shapes read from configurations against real calls."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastdit.adapters import find_adapter, load_adapters
from fastdit.errors import ConfigError, ModelLoadError, UnsupportedModelError
from fastdit_pipelines.real_shapes import KNOWN_SHAPES
from fastdit_pipelines.shape_reading import READERS, find_shape, read_shape

# Model, size, grid, text, tokens in all, tokens a frame, video tokens mod 128.
ROWS = [
    ("cogvideox-2b", (480, 720, 49), (13, 30, 45), 226, 17_776, 1350, 14),
    ("cogvideox-5b", (480, 720, 49), (13, 30, 45), 226, 17_776, 1350, 14),
    ("cogvideox1.5-5b", (480, 720, 81), (11, 30, 45), 226, 15_076, 1350, 2),
    ("cogvideox1.5-5b", (768, 1360, 81), (11, 48, 85), 226, 45_106, 4080, 80),
    ("cogvideox1.5-5b", (768, 1360, 161), (21, 48, 85), 226, 85_906, 4080, 48),
    ("wan-1.3b", (480, 832, 81), (21, 30, 52), 0, 32_760, 1560, 120),
    ("wan-14b", (720, 1280, 81), (21, 45, 80), 0, 75_600, 3600, 80),
    ("wan22-a14b", (720, 1280, 81), (21, 45, 80), 0, 75_600, 3600, 80),
    ("wan22-5b", (704, 1280, 121), (31, 22, 40), 0, 27_280, 880, 16),
    ("hunyuan-video", (720, 1280, 129), (33, 45, 80), 256, 119_056, 3600, 16),
    ("hunyuan-video", (544, 960, 129), (33, 34, 60), 256, 67_576, 2040, 120),
    ("hunyuan-video", (320, 512, 61), (16, 20, 32), 256, 10_496, 640, 0),
    ("hunyuan-video-1.5", (480, 848, 121), (31, 30, 53), 1985, 51_275, 1590, 10),
    ("hunyuan-video-1.5", (720, 1280, 121), (31, 45, 80), 1985, 113_585, 3600, 112),
    ("ltx-2b", (480, 704, 161), (21, 15, 22), 0, 6930, 330, 18),
    ("ltx-13b", (512, 768, 97), (13, 16, 24), 0, 4992, 384, 0),
    ("mochi", (480, 848, 163), (28, 30, 53), 256, 44_776, 1590, 104),
]
# Module under tests/support, its builder and runner, lists of blocks, height and width of a call.
BUILDERS = {
    "wan": ("tests_support", "build_tiny_wan", "run_wan", "blocks", (64, 96)),
    "cogvideox": ("tiny_cogvideox", "build", "run", "transformer_blocks", (64, 96)),
    "hunyuan_video": (
        "tiny_hunyuan_video",
        "build",
        "run",
        "transformer_blocks single_transformer_blocks",
        (64, 96),
    ),
    "hunyuan_video15": ("tiny_hunyuan_video15", "build", "run", "transformer_blocks", (32, 48)),
    "ltx": ("tiny_ltx", "build", "run", "transformer_blocks", (32, 64)),
    "mochi": ("tiny_mochi", "build", "run", "transformer_blocks", (96, 128)),
}


@pytest.mark.parametrize(("name", "size", "sizes", "text", "total", "per_frame", "rest"), ROWS)
def test_lengths_of_released_models(name, size, sizes, text, total, per_frame, rest):
    shape = KNOWN_SHAPES[name]
    settled, changes = shape.settle_size(*size)
    grid = shape.grid(*settled)
    assert (settled, changes) == (size, [])
    assert (grid.frames, grid.height, grid.width) == sizes
    assert (grid.text_length, grid.length, grid.height * grid.width) == (text, total, per_frame)
    assert grid.video_length % 128 == rest


@pytest.mark.parametrize(
    ("name", "flops"), [("wan-1.3b", 6.6e12), ("wan-14b", 117e12), ("hunyuan-video", 174e12), ("cogvideox-5b", 3.9e12)]
)
def test_flops_of_a_layer(name, flops):
    shape = KNOWN_SHAPES[name]
    grid = shape.grid(shape.height, shape.width, shape.num_frames)
    assert shape.attention_flops(grid) / shape.layers == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize(
    ("name", "asked", "settled"),
    [
        ("wan-1.3b", (480, 832, 80), (480, 832, 81)),
        ("wan-1.3b", (480, 832, 83), (480, 832, 81)),
        ("wan22-5b", (720, 1280, 121), (704, 1280, 121)),
        ("hunyuan-video", (720, 1280, 130), (720, 1280, 129)),
        ("hunyuan-video-1.5", (485, 850, 121), (480, 848, 121)),
        ("mochi", (480, 848, 19), (480, 848, 19)),
    ],
)
def test_sizes_are_changed_as_the_pipeline_does(name, asked, settled):
    found, changes = KNOWN_SHAPES[name].settle_size(*asked)
    assert found == settled
    assert len(changes) == sum(one != other for one, other in zip(asked, settled, strict=True))


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("wan-1.3b", (481, 832, 81), "height=481: wan-1.3b accepts multiples of 16 pixels: take 480 or 496"),
        ("wan22-5b", (704, 1290, 121), "width=1290: wan22-5b accepts multiples of 32"),
        ("cogvideox-5b", (488, 720, 49), "take 480 or 496"),
        ("ltx-2b", (16, 704, 161), "take 32"),
        ("mochi", (480, 848, 0), "num_frames=0"),
    ],
)
def test_sizes_that_are_refused(name, asked, message):
    with pytest.raises(ConfigError, match=message):
        KNOWN_SHAPES[name].settle_size(*asked)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", BUILDERS)
def test_a_shape_that_was_read_is_that_of_a_call(family):
    module, build, run, blocks, (height, width) = BUILDERS[family]
    module = import_module(module)
    pipe = getattr(module, build)()
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    size = {"height": height, "width": width} if "hunyuan" in family else {"size": (height, width)}
    with torch.no_grad():
        getattr(module, run)(pipe, steps=2, num_frames=13, **size)
    hook.remove()
    args, kwargs = calls[0]
    called = find_adapter(pipe.transformer).grid(pipe.transformer, args, kwargs)

    files = {
        "model_index.json": {"transformer": ["diffusers", type(pipe.transformer).__name__]},
        "transformer/config.json": dict(pipe.transformer.config),
        "vae/config.json": dict(pipe.vae.config),
    }
    shape = read_shape(family, files.__getitem__)
    grid = shape.grid(*shape.settle_size(height, width, 13)[0])
    assert shape.family == family
    assert (grid.frames, grid.height, grid.width) == (called.frames, called.height, called.width)
    assert grid.text_first == called.text_first
    assert shape.layers == len(find_adapter(pipe.transformer).sites(pipe.transformer))

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe.transformer(*args, **kwargs)
    counts = counter.get_flop_counts()
    names = [f"{type(pipe.transformer).__name__}.{name}" for name in blocks.split()]
    counted = sum(sum(flops.values()) for key, flops in counts.items() if key.rpartition(".")[0] in names)
    # Text as it came: of HunyuanVideo-1.5 and Mochi less than the most.
    text = kwargs.get("encoder_hidden_states")
    joint = shape.text_length and family != "hunyuan_video15"
    sized = replace(grid, text_length=text.shape[1]) if joint else grid
    if family == "hunyuan_video15":
        names = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
        sized = replace(grid, text_length=sum(kwargs[name].shape[1] for name in names))
    shape = replace(shape, cross_text=text.shape[1] if shape.cross_text else 0)
    batch = kwargs["hidden_states"].shape[0]
    # Modulation, which does not grow with the length, is left out of the formula.
    assert counted / batch == pytest.approx(shape.attention_flops(sized) + shape.other_flops(sized), rel=0.1)


def test_every_supported_transformer_can_be_read():
    bundled = {"PlacedWanTransformer3DModel"}  # supported as what it is derived from
    named = {name for adapter in load_adapters() for name in adapter.transformer_classes}
    assert named | bundled == READERS.keys()


def test_where_shapes_come_from(tmp_path):
    assert find_shape("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") is KNOWN_SHAPES["wan-1.3b"]
    tiny = find_shape("tiny")
    assert (tiny.layers, tiny.heads, tiny.num_inference_steps, tiny.cross_text) == (6, 4, 12, 32)
    assert tiny.grid(96, 96, 57).length == 4176
    with pytest.raises(ModelLoadError, match=r"accepted are tiny, wan-1\.3b"):
        find_shape("wan-2b")
    with pytest.raises(ModelLoadError, match="accepted is a Diffusers pipeline folder"):
        find_shape(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "Other"]}')
    with pytest.raises(UnsupportedModelError, match="transformer Other is of no known family"):
        find_shape(str(tmp_path))
