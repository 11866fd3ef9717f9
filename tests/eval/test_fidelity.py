import numpy as np
import pytest

from fastdit import InvalidInputError
from fastdit.fidelity import measure_fidelity
from fastdit_eval.comparison_sheet import draw_comparison


@pytest.fixture
def video():
    return np.random.default_rng(0).random((5, 24, 32, 3), dtype=np.float32)


def test_identical_videos_count_as_100_db(video):
    fidelity = measure_fidelity(video, video.copy())
    assert fidelity.psnr == 100.0
    assert fidelity.ssim == pytest.approx(1.0)


def test_psnr_is_the_mean_over_frames_not_the_pooled_one(video):
    other = video.copy()
    other[0] += 0.1
    other[1:] += 0.01
    assert measure_fidelity(video, other).psnr == pytest.approx((20 + 4 * 40) / 5, abs=1e-3)


def test_ssim_uses_a_gaussian_window_on_the_valid_area(video):
    """Against the formula written out with a plain convolution."""
    other = np.clip(video + np.random.default_rng(1).normal(0, 0.1, video.shape), 0, 1).astype(np.float32)
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2

    def blur(x):
        views = np.lib.stride_tricks.sliding_window_view(x, (11, 11))
        return (views * window).sum((-1, -2))

    values = []
    for a, b in zip(video.astype(np.float64), other.astype(np.float64), strict=True):
        for channel in range(3):
            x, y = a[..., channel], b[..., channel]
            mx, my = blur(x), blur(y)
            vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
            c1, c2 = 0.01**2, 0.03**2
            values.append(((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    assert measure_fidelity(video, other).ssim == pytest.approx(np.mean(values), abs=1e-4)


def test_frames_smaller_than_the_window_have_no_ssim(video):
    assert measure_fidelity(video[:, :8], video[:, :8]).ssim is None


def test_different_shapes_are_refused(video):
    with pytest.raises(InvalidInputError, match="equal shapes"):
        measure_fidelity(video, video[1:])


@pytest.mark.parametrize("num_frames", [1, 5])
def test_the_sheet_is_a_picture(video, tmp_path, num_frames):
    from PIL import Image

    path = tmp_path / "sheet.png"
    draw_comparison(video[:num_frames], video[:num_frames] * 0.5, "title", path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image).std() > 0
