"""A cut found from the top: coarse tiles first, then the children of the most promising ones alone.

After LLSA (arXiv 2512.16615), which keeps a fixed number of tiles at every level. Here the tiles seen make a small tree
for each query tile, and the cut through it is chosen by estimated errors. What is not opened stays a leaf that may be
used or dropped. Cost is query tiles x levels x beam, and no table of all query and key tiles exists; the price is that
a peak which vanishes in the means of a coarse tile is never found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastdit.selectors.own_tiles import OwnTiles
from fastdit_kernels.node_keys import PyramidKeys, pair_means
from fastdit_kernels.workspace import workspace_bytes

INF = float("inf")
BISECTIONS = 24
# Bytes of gathered keys worked on at once on a CPU.
CPU_WORKSPACE_BYTES = 4 << 20
# A level, the tiles of it that were looked at `[G, t, M]`, and whether each is used, bool `[G, t, M]`.
Found = tuple[int, torch.Tensor, torch.Tensor]


@dataclass
class Candidates:
    """Tiles of one level that were looked at, `M` for each of `t` query tiles.

    Args:
        level: Level.
        tile: Their numbers in the level, `[G, t, M]`.
        real: bool `[G, t, M]`; what is not real fills up the table.
        peak: Largest score of each row, `[G, t, R]`.
        added: What each adds to output and mass, times `e^-peak`, `[G, t, M, R, P + 1]`.
        coarser: The same with pairs of its rows pooled once more.
        opened: Places of those whose children were looked at, `[G, t, W]`; the children of the `j`-th are at `2 j` and
            `2 j + 1` of the next finer level. `None` at level 0.
    """

    level: int
    tile: torch.Tensor
    real: torch.Tensor
    peak: torch.Tensor
    added: torch.Tensor
    coarser: torch.Tensor
    opened: torch.Tensor | None = None


def search_cut(
    rows: torch.Tensor, keys: PyramidKeys, scale: float, budget: int, beam: int, own: OwnTiles | None
) -> Iterator[tuple[slice, list[Found]]]:
    """Cuts of at most `budget` nodes, or as many as there are own tiles.

    Args:
        rows: Sampled queries, `[G, t, samples, D]`.
        keys: All keys of the video at level 0.
        scale: Factor on the scores.
        budget: Most nodes of a query tile, at least one.
        beam: Tiles of each level whose children are looked at.
        own: Tiles that are kept in any case.

    Yields:
        Some query tiles, and per level, coarsest first: the level, the tiles looked at `[G, t, M]` and whether each is
        used, bool `[G, t, M]`.
    """
    levels = [keys.fine_key]
    for level in range(keys.layout.num_levels - 1):
        levels.append(pair_means(levels[-1], keys.layout, level))
    counts = [keys.layout.level_tiles(level) for level in range(1, keys.layout.num_levels)]
    values = [keys.fine_value, *(keys.pooled_value.split(counts, 1) if counts else ())]
    tiled = [(key.unflatten(1, value.shape[1:3]), value) for key, value in zip(levels, values, strict=True)]
    groups, tiles, _, dim = rows.shape
    widest = max(2 * beam, keys.layout.level_tiles(keys.layout.num_levels - 1))
    room = workspace_bytes(rows.device, CPU_WORKSPACE_BYTES)
    step = max(1, room // (groups * widest * keys.layout.tile * dim * 8))
    for first in range(0, tiles, step):
        some = slice(first, min(first + step, tiles))
        mine = None if own is None else own.some(some)
        chunk = rows[:, some].to(keys.fine_key.dtype) * scale
        tree, total, peak = _grow(chunk, keys, tiled, beam, mine)
        yield some, _choose(tree, _errors(tree, total, peak), budget, mine)


def _grow(
    rows: torch.Tensor,
    keys: PyramidKeys,
    tiled: list[tuple[torch.Tensor, torch.Tensor]],
    beam: int,
    own: OwnTiles | None,
) -> tuple[list[Candidates], torch.Tensor, torch.Tensor]:
    """Candidates of all levels, coarsest first; output and mass `[G, t, R, P + 1]` of all leaves, and their peak."""
    groups, tiles = rows.shape[:2]
    top = len(tiled) - 1
    tile = torch.arange(tiled[top][0].shape[1], device=rows.device).expand(groups, tiles, -1)
    real = torch.ones_like(tile, dtype=torch.bool)
    rest, peak = _text(rows, keys)
    tree = []
    for level in range(top, -1, -1):
        found = _look(rows, *tiled[level], tile, real, level)
        tree.append(found)
        joint = torch.maximum(peak, found.peak)
        added = _rescaled(found.added, found.peak - joint) * real.unsqueeze(-1).unsqueeze(-1)
        rest, peak = rest * (peak - joint).exp().unsqueeze(-1), joint
        total = rest + added.sum(2)
        if level == 0:
            break
        change = added - _rescaled(found.coarser, found.peak - joint)
        promise = _error(change, total).masked_fill(~real, -INF)
        if own is not None:
            promise = promise.masked_fill(own.hold(tile, level) & real, INF)
        found.opened = promise.topk(min(beam, tile.shape[2]), 2).indices
        parents, alive = tile.gather(2, found.opened), real.gather(2, found.opened)
        rest = total - added.gather(2, _like(found.opened, added)).sum(2)
        children = torch.stack([2 * parents, 2 * parents + 1], 3).flatten(2)
        count = tiled[level - 1][0].shape[1]
        real = alive.repeat_interleave(2, 2) & (children < count)
        tile = children.clamp(max=count - 1)
    return tree, total, peak


def _text(rows: torch.Tensor, keys: PyramidKeys) -> tuple[torch.Tensor, torch.Tensor]:
    """What the text adds, `[G, t, R, P + 1]`, and its peak; nothing and -inf without text."""
    if keys.text_key is None or keys.text_value is None:
        empty = rows.new_zeros(*rows.shape[:3], keys.fine_value.shape[3])
        return empty, torch.full_like(empty[..., 0], torch.finfo(rows.dtype).min)
    scores = rows @ keys.text_key.unsqueeze(1).mT
    peak = scores.amax(3)
    return (scores - peak.unsqueeze(3)).exp() @ keys.text_value.unsqueeze(1), peak


def _look(
    rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tile: torch.Tensor, real: torch.Tensor, level: int
) -> Candidates:
    """Contributions of some tiles: keys `[G, n, rows, D]` and values `[G, n, rows, P + 1]` of the level."""
    heads = torch.arange(len(key), device=key.device).view(-1, 1, 1)
    values = value[heads, tile]
    scores = rows.unsqueeze(2) @ key[heads, tile].mT
    hidden = torch.finfo(scores.dtype).min
    peak = scores.amax(4).masked_fill(~real.unsqueeze(3), hidden).amax(2)
    # What is not real may score higher; it is left out later and only must not overflow.
    scores = (scores - peak.unsqueeze(2).unsqueeze(4)).clamp_(max=0.0)
    even = scores.shape[4] // 2 * 2
    pairs = scores[..., :even].unflatten(4, (-1, 2)).mean(5).exp()
    coarser = pairs @ values[..., :even, :].unflatten(3, (-1, 2)).sum(4)
    if even < scores.shape[4]:
        coarser = coarser + scores[..., even:].exp() @ values[..., even:, :]
    return Candidates(level, tile, real, peak, scores.exp() @ values, coarser)


def _errors(tree: list[Candidates], total: torch.Tensor, peak: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Errors of using and of dropping the candidates `[G, t, M]`, against the finest that was seen; coarsest first."""
    errors = []
    finest: torch.Tensor | None = None
    for found in reversed(tree):
        own = _rescaled(found.added, found.peak - peak) * found.real.unsqueeze(-1).unsqueeze(-1)
        best = own
        if finest is not None and found.opened is not None:
            below = finest.unflatten(2, (-1, 2)).sum(3)
            best = own.scatter(2, _like(found.opened, own), below)
        errors.append((_error(own - best, total).masked_fill(~found.real, INF), _error(best, total)))
        finest = best
    return errors[::-1]


def _choose(
    tree: list[Candidates], errors: list[tuple[torch.Tensor, torch.Tensor]], budget: int, own: OwnTiles | None
) -> list[Found]:
    """The best cut within the budget that some price per node gives; what the price leaves of it is spent greedily."""
    high = errors[0][1].sum(2).clamp_min(torch.finfo(errors[0][1].dtype).tiny)
    low = high * 1e-7
    if own is not None:
        held = [own.hold(found.tile, found.level) & found.real for found in tree]
        errors = [
            (use.masked_fill(hold, INF) if found.level else use, drop.masked_fill(hold, INF))
            for found, hold, (use, drop) in zip(tree, held, errors, strict=True)
        ]
        allowed = held[-1].sum(2).clamp_min(budget)
    else:
        allowed = torch.full_like(high, budget, dtype=torch.int64)
    for _ in range(BISECTIONS):
        middle = (low * high).sqrt()
        fits = _plans(tree, errors, middle)[0].number.sum(2) <= allowed
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    used, left_out = _read(tree, _plans(tree, errors, high))
    used = _spent(used, left_out, errors, allowed)
    # A row with nothing at all would have no output: it keeps the coarsest tile that weighs most.
    nothing = ~torch.cat([keep for _, _, keep in used], 2).any(2)
    drop = errors[0][1].masked_fill(~tree[0].real, -INF)
    heaviest = torch.zeros_like(used[0][2]).scatter(2, drop.argmax(2, keepdim=True), True)
    level, tile, keep = used[0]
    used[0] = level, tile, keep | (heaviest & nothing.unsqueeze(2))
    return used


@dataclass(frozen=True)
class _Plan:
    """What is best for each candidate of a level at a price per node, all `[G, t, M]`.

    Args:
        keep: Use it.
        split: Go by what is best for its children.
        number: Nodes used in all.
    """

    keep: torch.Tensor
    split: torch.Tensor
    number: torch.Tensor


def _plans(tree: list[Candidates], errors: list[tuple[torch.Tensor, torch.Tensor]], price: torch.Tensor) -> list[_Plan]:
    """Plans of all levels, coarsest first, at a price per node `[G, t]`."""
    plans: list[_Plan] = []
    below: torch.Tensor | None = None
    for found, (use, drop) in zip(reversed(tree), reversed(errors), strict=True):
        bought = use + price.unsqueeze(2)
        keep = bought < drop
        cost, number, split = torch.minimum(bought, drop), keep.long(), torch.zeros_like(keep)
        if below is not None and found.opened is not None:
            children, whole = below.unflatten(2, (-1, 2)).sum(3), cost.gather(2, found.opened)
            better = children < whole
            inside = plans[-1].number.unflatten(2, (-1, 2)).sum(3)
            split = split.scatter(2, found.opened, better)
            cost = cost.scatter(2, found.opened, torch.where(better, children, whole))
            number = number.scatter(2, found.opened, torch.where(better, inside, number.gather(2, found.opened)))
        plans.append(_Plan(keep & ~split, split, number))
        below = cost
    return plans[::-1]


def _read(tree: list[Candidates], plans: list[_Plan]) -> tuple[list[Found], list[torch.Tensor]]:
    """What is used, and which candidates are dropped while what holds them is split, per level bool `[G, t, M]`."""
    used, left_out = [], []
    active = tree[0].real
    for found, plan in zip(tree, plans, strict=True):
        used.append((found.level, found.tile, active & plan.keep))
        left_out.append(active & ~plan.keep & ~plan.split)
        if found.opened is not None:
            active = (active & plan.split).gather(2, found.opened).repeat_interleave(2, 2)
            active = active & tree[len(used)].real
    return used, left_out


def _spent(
    used: list[Found],
    left_out: list[torch.Tensor],
    errors: list[tuple[torch.Tensor, torch.Tensor]],
    allowed: torch.Tensor,
) -> list[Found]:
    """The cut with what a price leaves of the budget spent on those left out, which are disjoint."""
    rest = allowed - torch.cat([keep for _, _, keep in used], 2).sum(2)
    gains = [(drop - use).masked_fill(~out, -INF) for out, (use, drop) in zip(left_out, errors, strict=True)]
    order = torch.cat(gains, 2).argsort(dim=2, descending=True, stable=True)
    place = torch.arange(order.shape[2], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(2, order, place)
    bought = (rank < rest.unsqueeze(2)) & (torch.cat(gains, 2) > 0)
    parts = bought.split([gain.shape[2] for gain in gains], 2)
    return [(level, tile, keep | more) for (level, tile, keep), more in zip(used, parts, strict=True)]


def _rescaled(added: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Contributions `[G, t, M, R, P + 1]` times `e^shift`, `[G, t, R]`."""
    return added * shift.exp().unsqueeze(2).unsqueeze(4)


def _like(places: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Places `[G, t, W]` for a gather from `[G, t, M, R, P + 1]`."""
    return places[..., None, None].expand(-1, -1, -1, *x.shape[3:])


def _error(change: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Error of changing what tiles add, as in `pyramid_statistics`, `[G, t, M]`."""
    mass = total[..., -1]
    size = (total[..., :-1] / mass.unsqueeze(-1)).square().sum(-1).sqrt()
    norm = change[..., :-1].square().sum(-1).sqrt() + change[..., -1].abs() * size.unsqueeze(2)
    return (norm / (2 * mass.unsqueeze(2))).mean(3)
