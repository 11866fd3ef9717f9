"""Sheets, pictures and shares of what a patch sees, against brute force on small grids."""

import numpy as np
import pytest
import torch

import fastdit
from fastdit.recorded_call import RecordedCall, RecordedLaunch
from fastdit_kernels import BlockMask
from fastdit_ui.frame_sheet import FrameSheet, latent_frames
from fastdit_ui.patch_pictures import LEVEL_COLORS, draw_attention, draw_levels, legend, shares
from fastdit_ui.patch_view import token_of, view_patch


@pytest.mark.parametrize("grid", [(1, 1, 1), (5, 3, 4), (15, 16, 16), (21, 30, 52)])
def test_every_patch_is_found_under_each_of_its_pixels(grid):
    sheet = FrameSheet.of(*grid)
    height, width = sheet.size
    expected = {}
    for frame in range(grid[0]):
        top, left = sheet.corner(frame)
        for row in range(grid[1]):
            for column in range(grid[2]):
                for y in (0, sheet.cell - 1):
                    for x in (0, sheet.cell - 1):
                        place = left + column * sheet.cell + x, top + row * sheet.cell + y
                        assert place not in expected
                        assert place[0] < width
                        assert place[1] < height
                        expected[place] = (frame, row, column)
    assert all(sheet.patch_at(*place) == patch for place, patch in expected.items())
    assert sheet.patch_at(0, 0) is None
    assert sheet.patch_at(width - 1, height - 1) is None
    assert sheet.patch_at(width + 500, 20) is None


def test_pixels_outside_all_frames_are_no_patch():
    sheet = FrameSheet.of(4, 2, 3)
    height, width = sheet.size
    inside = np.zeros((height, width), bool)
    for frame in range(4):
        top, left = sheet.corner(frame)
        inside[top : top + 2 * sheet.cell, left : left + 3 * sheet.cell] = True
    found = [[sheet.patch_at(x, y) is not None for x in range(0, width, 5)] for y in range(0, height, 5)]
    assert np.array_equal(found, inside[::5, ::5])


def test_latent_frames_are_the_first_to_the_last():
    video = np.linspace(0, 1, 9, dtype=np.float32)[:, None, None, None].repeat(4, 1).repeat(1200, 2).repeat(3, 3)
    shown = latent_frames(video, 3)
    assert shown.dtype == np.uint8
    assert shown.shape == (3, 2, 400, 3)
    assert shown[:, 0, 0, 0].tolist() == [0, 128, 255]


def patch_pixels(sheet, picture, patch):
    top, left = sheet.corner(patch[0])
    y, x = top + patch[1] * sheet.cell, left + patch[2] * sheet.cell
    # Without outlines, which go round patches.
    return picture[y + 3 : y + sheet.cell - 3, x + 3 : x + sheet.cell - 3]


def test_levels_are_drawn_where_they_are():
    sheet, frames = FrameSheet.of(2, 3, 3), np.full((2, 6, 6, 3), 200, np.uint8)
    frames[..., 0] = 100
    levels = np.zeros((2, 3, 3), np.int8)
    levels[0, 0, 1], levels[1, 2, 2], levels[1, 0, 0] = -1, 1, 3
    own = np.zeros(levels.shape, bool)
    own[0, 2] = True
    picture = draw_levels(sheet, frames, levels, own, (0, 2, 0))
    assert picture.shape == (*sheet.size, 3)
    for patch in np.ndindex(levels.shape):
        pixels = patch_pixels(sheet, picture, patch).reshape(-1, 3).astype(float)
        if levels[patch] == 0:
            # Three tenths of the way to white.
            assert np.allclose(pixels, (146.5, 216.5, 216.5), atol=1), patch
        elif levels[patch] == -1:
            assert pixels.max() < 100
            assert len(np.unique(pixels)) == 2, "hatched"
        else:
            color = np.array(LEVEL_COLORS[levels[patch] - 1])
            assert np.allclose(pixels, 0.45 * 500 / 3 + 0.55 * color, atol=1)
    # The query's tile is outlined.
    top, left = sheet.corner(0)
    edge = picture[top + 2 * sheet.cell, left + sheet.cell + 5]
    assert edge.tolist() == [0, 255, 255]


def test_attention_is_brightest_where_it_is_most():
    sheet, frames = FrameSheet.of(2, 3, 3), np.zeros((2, 6, 6, 3), np.uint8)
    weights = np.linspace(0.01, 1, 18, dtype=np.float32).reshape(2, 3, 3)
    own = np.zeros(weights.shape, bool)
    picture = draw_attention(sheet, frames, weights, own, (0, 0, 0)).astype(float)
    seen = [patch_pixels(sheet, picture, patch).sum() for patch in np.ndindex(weights.shape)]
    assert seen == sorted(seen)


def test_shares_are_counted_by_level():
    levels = np.array([0, 0, -1, 2, 2, -1, -1, 0], np.int8)
    weights = np.array([0.1, 0.2, 0.05, 0.25, 0.1, 0.1, 0.1, 0.1])
    found = {row["keys"]: (row["share of keys"], round(row["attention"], 6)) for row in shares(levels, weights)}
    assert found == {
        "kept": (3 / 8, 0.4),
        "pooled by 2": (0, 0),
        "pooled by 4": (2 / 8, 0.35),
        "dropped": (3 / 8, 0.25),
    }
    assert "mean of 4 keys" in legend(levels)
    assert "mean of 2 keys" not in legend(levels)


def make_call(rng, text_first=False):
    """A call of which head 0 keeps tile 0 alone, raster order, and head 1 is dense."""
    grid = fastdit.VideoGrid(frames=2, height=3, width=4, text_length=4, text_first=text_first)
    keep = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    keep[..., 0] = True
    keep[..., 6] = True
    mask = BlockMask.from_dense(keep, q_len=(24, 4), kv_len=(24, 4), q_tile=4, kv_tile=4)
    video = torch.arange(24) + grid.video_start
    order = torch.cat([video, torch.arange(4) + grid.text_start])
    return RecordedCall(
        transformer=0,
        layer=1,
        step=2,
        branch="cond",
        phase=0,
        grid=grid,
        dense_reason=None,
        query=torch.randn(2, 28, 8, generator=rng),
        key=torch.randn(2, 28, 8, generator=rng),
        launches=(RecordedLaunch((0,), mask, order, order),),
    )


@pytest.mark.parametrize("text_first", [False, True])
def test_a_patch_view_is_of_the_right_tokens(rng, text_first):
    call, frames = make_call(rng, text_first), np.full((2, 6, 8, 3), 200, np.uint8)
    token = token_of(call, (1, 2, 3))
    assert token == (27 if text_first else 23)
    view = view_patch(call, frames, 0, (1, 2, 3))
    weights = call.attention(0, token)
    start = 4 if text_first else 0
    tokens = [*range(start, start + 4), *range(0 if text_first else 24, 4 if text_first else 28)]
    rows = {row["keys"]: row for row in view.rows}
    assert rows["kept"]["share of keys"] == 8 / 28
    assert rows["kept"]["attention"] == pytest.approx(float(weights[tokens].sum()))
    assert f"{rows['kept']['attention']:.1%} lies on the 28.6%" in view.says
    assert "4 text tokens" in view.says
    sheet = FrameSheet.of(2, 3, 4)
    # The first four patches of frame 0 are kept, all others dropped.
    assert patch_pixels(sheet, view.levels, (0, 0, 2)).min() > 200
    assert patch_pixels(sheet, view.levels, (0, 1, 0)).max() < 120
    assert "dense" in view_patch(call, frames, 1, (0, 0, 0)).says


def test_patches_and_frames_that_do_not_fit_are_refused(rng):
    call = make_call(rng)
    with pytest.raises(fastdit.InvalidInputError, match="rows 0 to 2"):
        token_of(call, (0, 3, 0))
    with pytest.raises(fastdit.InvalidInputError, match="the run is damaged"):
        view_patch(call, np.zeros((3, 6, 8, 3), np.uint8), 0, (0, 0, 0))
    with pytest.raises(fastdit.InvalidInputError, match="heads 0 to 1"):
        view_patch(call, np.zeros((2, 6, 8, 3), np.uint8), 2, (0, 0, 0))
