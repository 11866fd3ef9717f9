"""What the sparse attention of one layer gave, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdit.head_groups import join_masks
from fastdit.recall import exact_recall
from fastdit.statistics import ReuseRecord
from fastdit_kernels import BlockMask


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel launch.

    Args:
        heads: Heads of the layer in the order in which the launch has them.
        places: The same on the device; `None` if they are all heads in their order.
        mask: What was computed.
        query: `[B, H, S, D]` in tile order, these heads alone.
        key: Likewise.
        query_order: Order of the queries, a permutation of the model's sequence: `[S]`, or `[H, S]` for one per head.
        key_order: Likewise of the keys.
    """

    heads: tuple[int, ...]
    places: torch.Tensor | None
    mask: BlockMask
    query: torch.Tensor
    key: torch.Tensor
    query_order: torch.Tensor
    key_order: torch.Tensor


@dataclass(frozen=True, eq=False)
class StepResult:
    """Sparse attention of one layer.

    Args:
        out: `[B, S, H, D]` in the model's token order.
        launches: Kernel launches; several if tile sizes differ between heads.
        dense_heads: Heads that the dense backend computed.
        reuse: What the cached method did.
    """

    out: torch.Tensor
    launches: tuple[Launch, ...]
    dense_heads: tuple[int, ...] = ()
    reuse: ReuseRecord | None = None

    @property
    def mask(self) -> BlockMask:
        """The mask of the only launch."""
        return self._only().mask

    @property
    def query(self) -> torch.Tensor:
        """The queries of the only launch."""
        return self._only().query

    @property
    def key(self) -> torch.Tensor:
        """The keys of the only launch."""
        return self._only().key

    def _only(self) -> Launch:
        assert len(self.launches) == 1, "heads are computed in several ways"
        return self.launches[0]

    def kept_pairs(self) -> torch.Tensor:
        """Scores computed, all of them in dense heads: int64 `[H]`, summed over the batch."""
        batch, length, heads, _ = self.out.shape
        pairs = torch.full((heads,), batch * length**2, dtype=torch.int64, device=self.out.device)
        for launch in self.launches:
            # A mask may serve all batch entries or heads at once.
            kept = launch.mask.kept_pairs().expand(batch, len(launch.heads)).sum(0)
            pairs = kept if launch.places is None else pairs.index_copy_(0, launch.places, kept)
        return pairs

    def masks(self) -> tuple[tuple[tuple[int, ...], BlockMask], ...]:
        """Heads, rising, and their mask, for each combination of tile sizes; dense heads list all tiles of the first.

        Empty if all heads are dense.
        """
        batch = self.out.shape[0]
        found = []
        for number, launch in enumerate(self.launches):
            heads, mask = launch.heads, launch.mask
            if number == 0 and self.dense_heads:
                full = BlockMask.full(mask.q_layout, mask.kv_layout, mask.indices.device)
                mask = join_masks([mask, full], [len(heads), len(self.dense_heads)], batch)
                heads = heads + self.dense_heads
            found.append((tuple(sorted(heads)), _sorted_heads(mask, heads)))
        return tuple(found)

    def recall(self) -> torch.Tensor:
        """Exact recall of every head, `[B, H]`; costs more than dense attention."""
        recall = self.out.new_ones(self.out.shape[0], self.out.shape[2], dtype=torch.float32)
        for launch in self.launches:
            measured = exact_recall(launch.query, launch.key, launch.mask)
            recall = recall.to(measured.dtype)
            recall[:, list(launch.heads)] = measured
        return recall


def _sorted_heads(mask: BlockMask, heads: tuple[int, ...]) -> BlockMask:
    if list(heads) == sorted(heads) or mask.indices.shape[1] == 1:
        return mask
    order = sorted(range(len(heads)), key=heads.__getitem__)
    return BlockMask(mask.indices[:, order], mask.counts[:, order], mask.q_layout, mask.kv_layout)
