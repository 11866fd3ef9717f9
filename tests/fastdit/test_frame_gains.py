"""Gains of the frames: products of gradients and errors, put together by blocks, steps and modes."""

import numpy as np
import pytest
import torch

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.plan import TransformerIdentity
from fastdit.search import frame_gains
from fastdit.search.frame_gains import FrameGains, block_squares, followed_steps, frame_gain_table, gains_of_modes
from fastdit.search.gains import first_phase_gain
from fastdit.search.tables import layer_errors

ONE = TransformerIdentity(class_name="One", config_hash="0" * 64, num_layers=1, num_heads=2)


@pytest.mark.parametrize("text", [0, 3])
def test_squares_are_of_sums_over_blocks_of_video_tokens(text):
    generator = torch.Generator().manual_seed(0)
    grid = VideoGrid(frames=7, height=5, width=6, text_length=text, text_first=bool(text))
    errors = torch.randn(2, 2, grid.length, 3, 4, generator=generator)
    gradient = torch.randn(2, grid.length, 3, 4, generator=generator)
    expected = np.zeros((2, 3))
    for mode, batch, head in np.ndindex(2, 2, 3):
        products = (errors[mode, batch, :, head] * gradient[batch, :, head]).sum(-1)
        video = products[grid.video_start : grid.video_start + grid.video_length].reshape(7, 5, 6)
        for t, y, x in np.ndindex(2, 2, 2):
            block = video[6 * t : 6 * t + 6, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            expected[mode, head] += float(block.double().sum()) ** 2
    assert block_squares(errors, gradient, grid) == pytest.approx(expected, rel=1e-5)


def test_noise_finds_the_squared_norm_of_what_a_linear_map_makes_of_errors(monkeypatch):
    """With blocks that are independent of each other, the mean over draws is what the errors do to the frames."""
    generator = torch.Generator().manual_seed(1)
    grid = VideoGrid(frames=1, height=1, width=4, text_length=0)
    monkeypatch.setattr(frame_gains, "BLOCK", (1, 1, 4))
    errors = torch.randn(1, 1, 4, 1, 2, generator=generator)
    jacobian = torch.randn(50, 8, generator=generator)
    moved = float((jacobian @ errors.flatten()).square().sum())
    found = [
        block_squares(errors, (torch.randn(50, generator=generator) @ jacobian).reshape(1, 4, 1, 2), grid)[0, 0]
        for _ in range(3000)
    ]
    assert np.mean(found) == pytest.approx(moved, rel=0.1)


@pytest.mark.parametrize(
    ("run", "steps"), [([], []), ([0], [0]), ([1, 2], [1, 2]), ([3, 4, 5], [3, 5]), (list(range(6, 12)), [7, 10])]
)
def test_two_steps_of_a_phase_are_followed(run, steps):
    assert followed_steps(run) == steps


def test_gains_of_other_modes_lie_between_those_that_were_followed():
    errors = np.array([[0.0, 1.0, 1e-1, 1e-2, 1e-3]])
    gains = gains_of_modes(np.array([[2.0, 8e-2]]), errors, [1, 3])
    # 2 at an error of 1 and 8 at one of .01: in between the geometric mean, beyond as at the end.
    assert gains[0, 1:] == pytest.approx([2, 4, 8, 8])


def test_a_head_that_errs_nowhere_has_a_gain_of_one():
    assert gains_of_modes(np.zeros((1, 2)), np.zeros((1, 3)), [1, 2]) == pytest.approx(1)
    # One that errs and moves nothing costs nothing.
    assert gains_of_modes(np.zeros((1, 2)), np.array([[0.0, 2.0, 1.0]]), [1, 2]) == pytest.approx(0)
    # One usable mode is enough.
    found = gains_of_modes(np.array([[0.0, 6.0]]), np.array([[0.0, 0.0, 2.0]]), [1, 2])
    assert found[0, 2] == pytest.approx(3)


def test_a_table_counts_all_steps_of_a_phase_and_knows_idle_ones():
    followed = FrameGains([0, 1, 4], ["half"])
    followed.num_values = 10
    followed.squares = {(0, 0, 1): np.array([[2.0, 4.0]]), (0, 0, 4): np.array([[6.0, 4.0]])}
    errors = np.full((2, 1, 2, 2), 0.5)
    table = frame_gain_table(followed, 0, errors, [[0, 1, 3, 4], []], ["dense", "half"])
    assert table[0, 0, :, 1] == pytest.approx([4 * 4 / 10 / 0.5, 4 * 4 / 10 / 0.5])
    assert np.isnan(table[1]).all()


@pytest.mark.parametrize("squares", [{}, {(0, 0, 1): np.array([[2.0, np.inf]])}, {(0, 0, 1): np.zeros((1, 2))}])
def test_gradients_that_are_missing_or_overflow_are_named(squares):
    followed = FrameGains([1], ["half"])
    followed.num_values, followed.squares = 10, squares
    with pytest.raises(ConfigError, match="gains='calls'"):
        frame_gain_table(followed, 0, np.full((1, 1, 2, 2), 0.5), [[1]], ["dense", "half"])


def test_tables_take_gains_of_frames_where_they_are_known():
    error = np.arange(8.0).reshape(2, 1, 2, 2)
    arrays = {"error_0": error, "gain_0": np.full((2, 1), 9.0), "joint_0": np.full(2, 9.0), "frame_gain_0": 2 * error}
    assert np.array_equal(layer_errors([arrays], [ONE], [[[0]], [[1]]])[0], 2 * error**2)


def test_the_first_phase_is_charged_with_what_the_others_do_not_explain():
    ones = np.ones((3, 1, 2, 2))
    arrays = {"error_0": ones, "frame_gain_0": ones * np.array([1e-3, 2e-3, 3e-3])[:, None, None, None]}
    steps = [[[0]], [[1]], [[2]]]
    # Two heads: 2e-3, 4e-3 and 6e-3, so 1e-2 of 5e-2 are explained by the last two.
    assert first_phase_gain(5e-2, [arrays], [ONE], steps, [1, 1, 1]) == pytest.approx([20, 1, 1])
    # A mild run does not make the first phase cheaper than its gradients say.
    assert first_phase_gain(1e-4, [arrays], [ONE], steps, [1, 1, 1]) == [1, 1, 1]
    # Where the first one has no steps, it is the next.
    assert first_phase_gain(1e-1, [arrays], [ONE], [[[]], [[0]], [[2]]], [1, 1, 1]) == pytest.approx([1, 23.5, 1])
