"""The functional door: sparse attention on raw tensors, without any pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit.attend import sparse_step
from fastdit.config import AttentionConfig
from fastdit.errors import ConfigError, InvalidInputError
from fastdit.grid import VideoGrid
from fastdit.mask_cache import MaskCache
from fastdit_kernels import BlockMask


@dataclass(frozen=True, eq=False)
class AttentionStats:
    """What one call of `sparse_attention` did.

    Args:
        masks: What was computed, in tile order: heads and their mask, one for each combination of tile sizes. Heads
            that a mixed config leaves dense list all tiles; there is no mask if all are.
        kept_pairs: Scores computed, int64 `[H]`, summed over the batch.
        dense_pairs: Scores of dense attention, all heads and batch entries.
        recall: Share of the true softmax mass on kept tokens, exact, `[B, H]`; `None` unless asked for.
    """

    masks: tuple[tuple[tuple[int, ...], BlockMask], ...]
    kept_pairs: torch.Tensor
    dense_pairs: int
    recall: torch.Tensor | None

    @property
    def mask(self) -> BlockMask:
        """The mask of all heads.

        Raises:
            InvalidInputError: The heads have several masks, because of their tile sizes, or none.
        """
        if len(self.masks) != 1:
            raise InvalidInputError(f"the heads have {len(self.masks)} masks: read `masks`, one for each tile size")
        return self.masks[0][1]

    @property
    def density(self) -> float:
        """Attention FLOPs executed / dense attention FLOPs of this call; reads the device."""
        return int(self.kept_pairs.sum()) / self.dense_pairs


def sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    config: AttentionConfig,
    *,
    grid: tuple[int, int, int],
    text_length: int = 0,
    kept_frames: int = 0,
    dense_frames: int = 0,
    recall: bool = False,
) -> tuple[torch.Tensor, AttentionStats]:
    """Self-attention over video tokens, sparse by the method of `config`: order, select, attend, put back.

    One call stands alone: `config.schedule` and `config.min_tokens`, which say when a run stays dense, do not apply.

    Args:
        query: `[B, H, S, D]`, any strides, after norms and rotary embedding. Tokens are in raster order, frame by frame
            and row by row, then text: `S = t * h * w + text_length`.
        key: `[B, H, S, D]`, likewise.
        value: `[B, H, S, D]`, likewise.
        config: Method and settings.
        grid: Frames, token rows and token columns `(t, h, w)`.
        text_length: Text tokens at the end.
        kept_frames: First frames whose keys every query sees, e.g. a condition image.
        dense_frames: The first ones of these, whose queries also see everything.
        recall: Also measure the recall of the mask, which costs more than dense attention.

    Returns:
        Output `[B, H, S, D]` in raster order, and statistics: `density`, `mask`, `recall`.

    Raises:
        ConfigError: `config` is not a config.
        InvalidInputError: Shapes, dtypes or devices do not fit.
        KernelUnavailableError: The implementation named in `config` cannot run here.
    """
    if not isinstance(config, AttentionConfig):
        raise ConfigError(f"config={config!r}: accepted is a config such as fastdit.AdaptiveConfig(...)")
    if len(grid) != 3:
        raise InvalidInputError(f"grid={grid!r}: accepted are three sizes (frames, height, width)")
    geometry = VideoGrid(
        frames=grid[0],
        height=grid[1],
        width=grid[2],
        text_length=text_length,
        kept_frames=kept_frames,
        dense_frames=dense_frames,
    )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4 or x.shape != query.shape or x.shape[2] != geometry.length:
            raise InvalidInputError(
                f"{name} is {tuple(x.shape)}: accepted with this grid and text_length is [B, H, {geometry.length}, D], "
                "equal for query, key and value"
            )
        if x.dtype != query.dtype or x.device != query.device:
            raise InvalidInputError(
                f"{name} is {x.dtype} on {x.device}, query is {query.dtype} on {query.device}: all three must agree"
            )
    # The step takes [B, S, H, D], as processors have it.
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    step = sparse_step(q, k, v, geometry, config, MaskCache())
    pairs = query.shape[0] * query.shape[1] * query.shape[2] ** 2
    stats = AttentionStats(step.masks(), step.kept_pairs(), pairs, step.recall() if recall else None)
    return step.out.transpose(1, 2), stats
