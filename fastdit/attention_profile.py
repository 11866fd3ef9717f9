"""What the attention of a head looks like, measured on sampled query rows; pure functions of probabilities.

Probabilities are `[..., S]`, float32, each row summing to one; tokens are in the frame-major order of `VideoGrid`.
"""

from __future__ import annotations

import math

import torch

from fastdit.errors import InvalidInputError
from fastdit.grid import VideoGrid

KINDS = ("local", "temporal", "stripe", "global")
NEAR = 0.5
STRIPE_MAX_SHARE = 0.5
STRIPE_MIN_AGREEMENT = 0.5


def sample_rows(length: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """Evenly spaced tokens, `min(count, length)` of them: `floor((i + 1/2) length / count)`."""
    if length < 1 or count < 1:
        raise InvalidInputError(f"length={length}, count={count}: accepted are positive integers")
    count = min(count, length)
    return ((torch.arange(count, device=device) + 0.5) * length / count).long()


def attention_rows(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, *, scale: float | None = None, chunk: int = 1 << 24
) -> torch.Tensor:
    """Softmax attention probabilities of some query rows, mean over the batch.

    Args:
        query: `[B, S, H, D]`.
        key: `[B, S, H, D]`.
        rows: Query tokens `[n]`.
        scale: Factor of the logits, default `D ** -0.5`.
        chunk: Largest number of probabilities held at once besides the result.

    Returns:
        `[H, n, S]`, float32.
    """
    batch, length, heads, head_dim = key.shape
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.zeros(heads, len(rows), length, device=query.device)
    step = max(1, chunk // (batch * length))
    for head in range(heads):
        keys = key[:, :, head].float().transpose(1, 2)
        for start in range(0, len(rows), step):
            chosen = query[:, rows[start : start + step].to(query.device), head].float()
            out[head, start : start + step] = (chosen @ keys * scale).softmax(-1).mean(0)
    return out


def mass_share(probabilities: torch.Tensor, mass: float = 0.95) -> torch.Tensor:
    """Least share of keys that together hold `mass` of each row, `[...]`."""
    needed = _count_needed(probabilities.sort(-1, descending=True).values, mass)
    return needed / probabilities.shape[-1]


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """`-sum p ln p / ln S` of each row, `[...]`: 0 for a single key, 1 for uniform attention."""
    length = probabilities.shape[-1]
    return torch.special.entr(probabilities).sum(-1) / math.log(length) if length > 1 else probabilities[..., 0] * 0


def mean_distance(probabilities: torch.Tensor, rows: torch.Tensor, grid: VideoGrid) -> torch.Tensor:
    """Mean `|t - t'|, |y - y'|, |x - x'|` between each query and its keys, in tokens.

    Args:
        probabilities: `[..., n, S]`, of video tokens only.
        rows: Query tokens `[n]`.
        grid: Geometry.

    Returns:
        `[..., n, 3]`.
    """
    places = token_places(torch.arange(grid.video_length, device=probabilities.device), grid)
    own = token_places(rows.to(probabilities.device), grid)
    return torch.stack(
        [(probabilities * (own[:, None, axis] - places[None, :, axis]).abs()).sum(-1) for axis in range(3)], -1
    )


def token_places(tokens: torch.Tensor, grid: VideoGrid) -> torch.Tensor:
    """`(t, y, x)` of tokens `[n]`, as `[n, 3]` floats."""
    frame = grid.height * grid.width
    return torch.stack([tokens // frame, tokens % frame // grid.width, tokens % grid.width], -1).float()


def block_mass(probabilities: torch.Tensor, block: int) -> torch.Tensor:
    """Mass of each run of `block` keys, the last one possibly shorter: `[..., ceil(S / block)]`."""
    padding = -probabilities.shape[-1] % block
    out: torch.Tensor = torch.nn.functional.pad(probabilities, (0, padding)).unflatten(-1, (-1, block)).sum(-1)
    return out


def needed_blocks(blocks: torch.Tensor, mass: float = 0.95) -> torch.Tensor:
    """The fewest blocks that together hold `mass` of each row: bool like `blocks`."""
    ordered, index = blocks.sort(-1, descending=True)
    rank = torch.arange(blocks.shape[-1], device=blocks.device)
    kept = rank < _count_needed(ordered, mass)[..., None]
    return torch.zeros_like(blocks, dtype=torch.bool).scatter(-1, index, kept)


def jaccard(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`|A and B| / |A or B|` over the last two dimensions of bool `[..., n, blocks]`; 1 if both are empty."""
    union = (first | second).sum((-1, -2))
    shared = (first & second).sum((-1, -2))
    return (shared / union.clamp_min(1)).masked_fill(union == 0, 1.0)


def row_agreement(probabilities: torch.Tensor) -> torch.Tensor:
    """Shared mass `sum min(p, p')` of query rows half the sequence apart, mean over pairs: `[..., n, S]` to `[...]`.

    1 if all queries look at the same keys, near 0 if each looks around itself.
    """
    half = probabilities.shape[-2] // 2
    first, second = probabilities[..., :half, :], probabilities[..., half : 2 * half, :]
    return torch.minimum(first, second).sum(-1).mean(-1) if half else probabilities[..., 0, 0] * 0


def classify(share: float, distance: torch.Tensor, uniform_distance: torch.Tensor, agreement: float) -> str:
    """Kind of a head, the first that fits.

    * `local`: mean distances in t, y and x are all below half of those of uniform attention.
    * `temporal`: those in y and x are below half, that in t is not: the same place through time.
    * `stripe`: the rows share at least half of their mass on the same keys (`agreement >= .5`), and those are few
      (`share <= .5`).
    * `global`: everything else, which includes heads that see all of the nearest frames.

    Args:
        share: Mean `mass_share` at 95 %.
        distance: Mean distances `[3]`.
        uniform_distance: The same for uniform attention from the same rows `[3]`.
        agreement: `row_agreement`.
    """
    # A grid of one frame or row has no distance there, which counts as near.
    near = [bool(own <= NEAR * far) for own, far in zip(distance, uniform_distance, strict=True)]
    if near[1] and near[2]:
        return "local" if near[0] else "temporal"
    if agreement >= STRIPE_MIN_AGREEMENT and share <= STRIPE_MAX_SHARE:
        return "stripe"
    return "global"


def _count_needed(ordered: torch.Tensor, mass: float) -> torch.Tensor:
    """Entries of each descending row until their sum reaches `mass`, never more than all."""
    if not 0 < mass <= 1:
        raise InvalidInputError(f"mass={mass}: accepted is a share above 0 and at most 1")
    # Double precision, so that many small entries do not fall short of the mass by rounding.
    before = ordered.double().cumsum(-1) - ordered.double()
    return (before < mass * ordered.double().sum(-1, keepdim=True) - 1e-9).sum(-1)
