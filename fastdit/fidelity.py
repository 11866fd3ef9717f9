"""How close two renderings of the same video are, in the convention of PAB (Pyramid Attention Broadcast).

Per frame in RGB on [0, 1], then the mean over frames. Identical frames count as 100 dB. SSIM uses a Gaussian window of
11 pixels (sigma 1.5), valid area only, mean over channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdit.errors import InvalidInputError

CONVENTION = "pab"
IDENTICAL_PSNR = 100.0
SSIM_WINDOW = 11


@dataclass(frozen=True)
class Fidelity:
    """Mean over frames.

    Args:
        psnr: dB, 100 for identical frames.
        ssim: At most 1; `None` for frames smaller than the window.
    """

    psnr: float
    ssim: float | None


def measure_fidelity(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Fidelity:
    """Compare a video with its reference.

    Args:
        reference: Dense frames `[F, H, W, 3]` in [0, 1].
        other: Sparse frames, same shape.

    Raises:
        InvalidInputError: The shapes differ.
    """
    psnr = psnr_per_frame(reference, other)
    ssim = ssim_per_frame(reference, other)
    return Fidelity(float(np.mean(psnr)), None if ssim is None else float(np.mean(ssim)))


def psnr_per_frame(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> list[float]:
    """PSNR of each frame in dB, at most 100; arguments and errors as in `measure_fidelity`."""
    _check_shapes(reference, other)
    return [_psnr(a, b) for a, b in zip(reference, other, strict=True)]


def ssim_per_frame(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> list[float] | None:
    """SSIM of each frame, `None` for frames smaller than the window; else as `psnr_per_frame`."""
    _check_shapes(reference, other)
    if min(reference.shape[1:3]) < SSIM_WINDOW:
        return None
    return [_ssim(a, b) for a, b in zip(reference, other, strict=True)]


def _check_shapes(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
    if reference.shape != other.shape or reference.ndim != 4:
        raise InvalidInputError(
            f"videos of shape {reference.shape} and {other.shape}: accepted are two equal shapes [F, H, W, 3]"
        )


def _psnr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    # Imported here: it brings SciPy's statistics, which would double the time that importing fastdit takes.
    from skimage.metrics import mean_squared_error

    error = float(mean_squared_error(a, b))
    return IDENTICAL_PSNR if error < 1e-10 else min(IDENTICAL_PSNR, -10 * float(np.log10(error)))


def _ssim(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
            data_range=1.0,
        )
    )
