"""The best cut through a binary tree under a budget of nodes, for many trees at once.

A cut is a set of nodes none of which is an ancestor of another; leaves under no node of the cut are dropped. This is
the tree pruning of CART and BFOS (Breiman et al. 1984; Chou, Lookabaugh, Gray 1989). A multiplier finds only the cuts
on the convex hull of (nodes, error) and leaves a part of the budget unspent; the dynamic program here finds the best
cut for every number of nodes, at about the same cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

INF = float("inf")


def optimal_cut(
    use_error: Sequence[torch.Tensor],
    drop_error: Sequence[torch.Tensor],
    budget: torch.Tensor,
    max_budget: int,
    min_nodes: int = 0,
) -> list[torch.Tensor]:
    """The cut of at most `budget` nodes with the least sum of errors, for each tree.

    With `error[n, k]` the least error of the leaves under node `n` if `k` nodes are used there:

        error[n, k] = min over i of error[left, i] + error[right, k - i]
        error[n, 0] = min(that, drop_error[n]),    error[n, 1] = min(that, use_error[n])

    Node `t` of level `l` has the children `2 t` and `2 t + 1` of level `l - 1`; a last one without a sibling has one
    child. Above the highest level only sums are taken.

    Args:
        use_error: Per level, error of using a node, `[N, n_l]` with `n_l = ceil(n_0 / 2**l)`; inf forbids it.
        drop_error: Per level, error of dropping all leaves of a node; inf forbids it.
        budget: Most nodes of each tree, int64 `[N]`. A tree that cannot be cut within it must not be given.
        max_budget: At least the largest `budget`; known on the host.
        min_nodes: Least nodes of each tree, at most `budget`.

    Returns:
        Per level bool `[N, n_l]`: the nodes of the cut.
    """
    tables = _tables(use_error, drop_error, max_budget)
    counts = torch.arange(len(tables[-1]), device=budget.device).unsqueeze(1)
    root = tables[-1].squeeze(2).masked_fill((counts > budget) | (counts < min_nodes), INF)
    granted = root.argmin(0).unsqueeze(1)
    cut: list[torch.Tensor] = []
    for level in range(len(tables) - 1, -1, -1):
        is_real = level < len(use_error)
        if level == 0:
            cut.append(granted[:, : use_error[0].shape[1]] == 1)
            break
        left, right = _children(tables[level - 1])
        error, to_left = _split(left, right, granted)
        if is_real:
            used = (granted == 1) & (use_error[level] <= error)
            cut.append(used)
            granted, to_left = granted.masked_fill(used, 0), to_left.masked_fill(used, 0)
        granted = torch.stack([to_left, granted - to_left], 2).flatten(1)[:, : tables[level - 1].shape[2]]
    return cut[::-1]


def _tables(
    use_error: Sequence[torch.Tensor], drop_error: Sequence[torch.Tensor], max_budget: int
) -> list[torch.Tensor]:
    """`error[k, tree, node]` of all levels up to one root; the count comes first so that slices are contiguous."""
    table = torch.stack([drop_error[0], use_error[0]])[: max_budget + 1]
    tables = [table]
    while table.shape[2] > 1 or len(tables) < len(use_error):
        table = _merge(*_children(table), max_budget)
        level = len(tables)
        if level < len(use_error):
            table[0] = torch.minimum(table[0], drop_error[level])
            if len(table) > 1:
                table[1] = torch.minimum(table[1], use_error[level])
        tables.append(table)
    return tables


def _children(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Left and right children; a missing one costs nothing if dropped and cannot be used."""
    if table.shape[2] % 2:
        table = F.pad(table, (0, 1), value=INF)
        table[0, :, -1] = 0.0
    return table[:, :, 0::2].contiguous(), table[:, :, 1::2].contiguous()


def _merge(left: torch.Tensor, right: torch.Tensor, max_budget: int) -> torch.Tensor:
    """Least `left[i] + right[k - i]` for each `k` up to `max_budget`."""
    size = min(2 * len(left) - 1, max_budget + 1)
    merged = left.new_full((size, *left.shape[1:]), INF)
    for i in range(min(len(left), size)):
        width = min(len(right), size - i)
        place = merged[i : i + width]
        torch.minimum(place, left[i] + right[:width], out=place)
    return merged


def _split(left: torch.Tensor, right: torch.Tensor, granted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How the `granted` nodes `[N, n]` are best shared: the error and the share of the left child."""
    share = torch.arange(len(left), device=granted.device).view(-1, 1, 1)
    rest = granted - share
    error = left + right.gather(0, rest.clamp(0, len(right) - 1))
    return error.masked_fill_((rest < 0) | (rest >= len(right)), INF).min(0)
