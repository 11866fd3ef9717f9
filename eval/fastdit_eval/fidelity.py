"""How close two renderings of the same video are, in the convention of PAB (Pyramid Attention Broadcast).

Per frame in RGB on [0, 1], then the mean over frames. Identical frames count as 100 dB. SSIM uses a Gaussian window of
11 pixels (sigma 1.5), valid area only, mean over channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.metrics import mean_squared_error, structural_similarity

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
    if reference.shape != other.shape or reference.ndim != 4:
        raise InvalidInputError(
            f"videos of shape {reference.shape} and {other.shape}: accepted are two equal shapes [F, H, W, 3]"
        )
    psnr = [_psnr(a, b) for a, b in zip(reference, other, strict=True)]
    ssim = None
    if min(reference.shape[1:3]) >= SSIM_WINDOW:
        ssim = float(np.mean([_ssim(a, b) for a, b in zip(reference, other, strict=True)]))
    return Fidelity(float(np.mean(psnr)), ssim)


def _psnr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    error = float(mean_squared_error(a, b))
    return IDENTICAL_PSNR if error < 1e-10 else min(IDENTICAL_PSNR, -10 * float(np.log10(error)))


def _ssim(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
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
