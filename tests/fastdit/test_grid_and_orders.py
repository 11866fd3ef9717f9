import pytest
import torch

from fastdit import ConfigError, InvalidInputError, VideoGrid
from fastdit.orders import ORDER_NAMES, token_order, video_order

SIZES = [(1, 1, 1), (1, 1, 7), (5, 1, 1), (3, 2, 3), (4, 4, 4), (5, 7, 9), (17, 16, 16), (13, 30, 45), (2, 3, 1)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ORDER_NAMES)
def test_every_order_is_a_permutation(sizes, name):
    grid = VideoGrid(frames=sizes[0], height=sizes[1], width=sizes[2])
    assert torch.equal(video_order(grid, name).sort().values, torch.arange(grid.video_length))


def coordinates(order, grid):
    return torch.stack([order // (grid.height * grid.width), order // grid.width % grid.height, order % grid.width], 1)


@pytest.mark.parametrize("sizes", SIZES)
def test_gilbert_steps_go_to_a_touching_cell(sizes):
    grid = VideoGrid(frames=sizes[0], height=sizes[1], width=sizes[2])
    jumps = coordinates(video_order(grid, "gilbert"), grid).diff(dim=0).abs()
    assert (jumps.amax(1) <= 1).all()
    if all(size % 2 == 0 for size in sizes):
        assert (jumps.sum(1) == 1).all()


@pytest.mark.parametrize("sizes", SIZES)
def test_frame_gilbert_walks_one_frame_after_the_other(sizes):
    grid = VideoGrid(frames=sizes[0], height=sizes[1], width=sizes[2])
    places = coordinates(video_order(grid, "frame_gilbert"), grid)
    assert torch.equal(places[:, 0], torch.arange(sizes[0]).repeat_interleave(sizes[1] * sizes[2]))
    assert (places.diff(dim=0).abs().amax(1) <= 1).all()


def test_gilbert_tiles_are_more_compact_than_raster_tiles():
    grid = VideoGrid(frames=21, height=30, width=52)

    def spread(name):
        tiles = coordinates(video_order(grid, name), grid)[: 255 * 128].view(-1, 128, 3).float()
        return (tiles.amax(1) - tiles.amin(1)).sum(1).mean()

    assert spread("gilbert") < 0.5 * spread("raster")


def test_space_major_walks_time_first():
    order = video_order(VideoGrid(frames=3, height=1, width=2), "space_major")
    assert order.tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("text_first", [False, True])
def test_text_comes_last_in_tile_order(text_first):
    grid = VideoGrid(frames=2, height=2, width=2, text_length=3, text_first=text_first)
    order = token_order(grid, "raster")
    video, text = (range(3, 11), range(3)) if text_first else (range(8), range(8, 11))
    assert order.tolist() == [*video, *text]
    assert grid.query_segments == grid.key_segments == (8, 3)
    assert grid.length == 11


def test_bad_geometry_and_orders_are_refused():
    with pytest.raises(InvalidInputError, match="frames=0"):
        VideoGrid(frames=0, height=2, width=2)
    with pytest.raises(InvalidInputError, match="text_length=-1"):
        VideoGrid(frames=1, height=2, width=2, text_length=-1)
    with pytest.raises(ConfigError, match="'gilbert'"):
        video_order(VideoGrid(frames=1, height=1, width=1), "hilbert")
