"""Dense, sparse and their difference in one picture per frame, so that a player shows all three at the same moment."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt

from fastdit.errors import InvalidInputError

# A tiny difference should not look dramatic: the scale ends here at least.
LEAST_TOP = 0.1


def difference_frames(
    dense: npt.NDArray[np.float32], sparse: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    """Absolute difference, mean over RGB, as a heat-map on one scale for all frames.

    Args:
        dense: `[F, H, W, 3]` in [0, 1].
        sparse: Likewise.

    Returns:
        The heat-map `[F, H, W, 3]` in [0, 1], and the difference at its bright end, at least 0.1.

    Raises:
        InvalidInputError: The shapes differ.
    """
    if dense.shape != sparse.shape or dense.ndim != 4:
        raise InvalidInputError(
            f"videos of shape {dense.shape} and {sparse.shape}: accepted are two equal shapes [F, H, W, 3]"
        )
    difference = np.abs(dense - sparse).mean(-1)
    top = max(LEAST_TOP, float(difference.max()))
    # Frame by frame: the colour map works in float64 with four channels.
    colors = matplotlib.colormaps["inferno"]
    heat = np.stack([colors(frame / top)[..., :3].astype(np.float32) for frame in difference])
    return heat, top


def side_by_side(
    dense: npt.NDArray[np.float32], sparse: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    """Dense, sparse and difference from left to right, `[F, H, 3 W, 3]`; else as `difference_frames`."""
    heat, top = difference_frames(dense, sparse)
    return np.concatenate([dense, sparse, heat], axis=2), top
