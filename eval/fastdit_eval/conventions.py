"""The metrics of the literature, by the code base whose numbers they reproduce.

`pab` is that of Pyramid Attention Broadcast and TeaCache, `svg` that of Sparse-VideoGen and its successors; `default`
is `pab`. Their SSIM and LPIPS of one pair of clips differ more than most methods do, so results always name the
convention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter

from fastdit.fidelity import SSIM_WINDOW, psnr_per_frame, ssim_per_frame
from fastdit_eval.clips import Clip
from fastdit_eval.metric import Metric, MetricUnavailableError
from fastdit_eval.vmaf import MODEL, vmaf_per_frame

# torchmetrics wants a sixteenth of the size, rounded down, to be no smaller than its window of 11 pixels.
MS_SSIM_LEAST_SIZE = 176


def _psnr(reference: Clip, other: Clip) -> list[float]:
    return psnr_per_frame(reference.unit(), other.unit())


def _ssim_gaussian(reference: Clip, other: Clip) -> list[float]:
    values = ssim_per_frame(reference.unit(), other.unit())
    if values is None:
        raise MetricUnavailableError(f"frames are smaller than the window of {SSIM_WINDOW} pixels")
    return values


def _ssim_uniform(reference: Clip, other: Clip) -> list[float]:
    return [uniform_ssim(a, b) for a, b in zip(reference.unit(), other.unit(), strict=True)]


def uniform_ssim(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """SSIM over a square window of 11 pixels with zeros around the frame, all channels together.

    Args:
        a: `[H, W, 3]` in [0, 1].
        b: Likewise.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        filtered: npt.NDArray[np.float64] = uniform_filter(values, (SSIM_WINDOW, SSIM_WINDOW, 1), mode="constant")
        return filtered

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _ms_ssim(reference: Clip, other: Clip) -> list[float]:
    try:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure
    except ImportError as error:
        raise MetricUnavailableError("torchmetrics is not installed: pip install 'fastdit[metrics]'") from error
    if min(reference.frames.shape[1:3]) < MS_SSIM_LEAST_SIZE:
        raise MetricUnavailableError(f"frames are smaller than {MS_SSIM_LEAST_SIZE} pixels, too few for five scales")
    pairs = zip(reference.unit(), other.unit(), strict=True)
    return [float(measure(_batch(b), _batch(a), data_range=1.0)) for a, b in pairs]


def _lpips(network: str, spatial: bool, signed: bool) -> Callable[[Clip, Clip], list[float]]:
    """LPIPS of each frame; `signed` feeds [-1, 1], as the networks were trained, else [0, 1]."""

    def per_frame(reference: Clip, other: Clip) -> list[float]:
        model = _lpips_model(network, spatial)
        scale, shift = (2, 1) if signed else (1, 0)
        values = []
        with torch.no_grad():
            for a, b in zip(reference.unit(), other.unit(), strict=True):
                values.append(float(model(_batch(a) * scale - shift, _batch(b) * scale - shift).mean()))
        return values

    return per_frame


def _lpips_model(network: str, spatial: bool) -> Any:
    try:
        import lpips
    except ImportError as error:
        raise MetricUnavailableError(f"lpips cannot be imported ({error}): pip install 'fastdit[metrics]'") from error
    except (OSError, RuntimeError) as error:
        # A torchvision for another torch, or for CUDA beside a torch for CPUs, fails in its own way.
        raise MetricUnavailableError(
            f"lpips cannot be imported ({error}): torchvision must be of the release and the build of torch"
        ) from error
    try:
        return lpips.LPIPS(net=network, spatial=spatial, verbose=False).eval()
    except (OSError, RuntimeError) as error:
        # The ImageNet trunk is a download of its own; urllib's errors are OSErrors.
        raise MetricUnavailableError(f"the {network} weights of LPIPS cannot be loaded: {error}") from error


def _batch(frame: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None]


PSNR = Metric("psnr_rgb", "RGB, peak 1, mean over frames; identical frames count as 100 dB", True, _psnr)
MS_SSIM = Metric("ms_ssim", "torchmetrics, RGB, data range 1, five scales, mean over frames", True, _ms_ssim)
VMAF = Metric("vmaf", f"libvmaf of ffmpeg, model {MODEL}, 4:2:0, mean over frames", True, vmaf_per_frame)
PAB = (
    PSNR,
    Metric("ssim", "Gaussian window 11, sigma 1.5, valid area, mean over channels and frames", True, _ssim_gaussian),
    MS_SSIM,
    Metric("lpips_alex", "AlexNet, inputs in [-1, 1], spatial, mean over frames", False, _lpips("alex", True, True)),
    VMAF,
)
SVG = (
    PSNR,
    Metric("ssim", "uniform window 11, zeros around the frame, RGB together, mean over frames", True, _ssim_uniform),
    MS_SSIM,
    Metric("lpips_vgg", "VGG, inputs in [0, 1] as they are, mean over frames", False, _lpips("vgg", False, False)),
    VMAF,
)
CONVENTIONS = {"default": PAB, "pab": PAB, "svg": SVG}
