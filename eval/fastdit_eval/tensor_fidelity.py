"""How close two tensors are: attention outputs, or latents, which no decoder and no codec has touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdit.errors import InvalidInputError


def tensor_fidelity(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> dict[str, float]:
    """Distances of `other` from `reference`, in the definitions of SpargeAttn.

    Args:
        reference: O, of the dense run, any shape.
        other: O', of the sparse run, same shape.

    Returns:
        `cosine` = sum(O O') / (|O| |O'|), `relative_l1` = sum|O - O'| / sum|O|, `rmse` = sqrt(mean (O - O')^2), and
        `psnr` in dB with the range of O as peak, 100 for equal tensors.

    Raises:
        InvalidInputError: Shapes differ, or values are not finite, or the reference is constantly 0.
    """
    if reference.shape != other.shape:
        raise InvalidInputError(f"tensors of shape {reference.shape} and {other.shape}: accepted are equal shapes")
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidInputError("a tensor holds NaN or infinity: find out which run made it")
    norms, size = np.linalg.norm(a) * np.linalg.norm(b), np.abs(a).sum()
    if size == 0:
        raise InvalidInputError("the reference is 0 everywhere: distances relative to it are not defined")
    mse = float(np.square(a - b).mean())
    peak = float(np.ptp(a)) or float(np.abs(a).max())
    return {
        "cosine": float(a @ b / norms) if norms else 0.0,
        "relative_l1": float(np.abs(a - b).sum() / size),
        "rmse": mse**0.5,
        "psnr": 100.0 if mse == 0 else min(100.0, 10 * float(np.log10(peak**2 / mse))),
    }
