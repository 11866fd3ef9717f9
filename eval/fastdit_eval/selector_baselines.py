"""Selectors of other projects as their papers and code define them, a few lines each, for comparison only.

Where a method sees blocks of 128 tokens, it is given the tiles of the comparison instead, so that all answers are made
of the same tiles. None of them is tuned down; where one of its defaults makes a density unreachable, that is said.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fastdit.orders import ORDER_NAMES
from fastdit.selectors.adaptive import self_similarity
from fastdit_eval.selector_task import Answer, OrderedTokens, Selector, SelectorTask
from fastdit_kernels import BlockMask, TileLayout, gather_tokens, select_tiles, stratified_rows, tile_means

SPARGE_GATES = (0.6, 0.4, 0.2, 0.0, -1.0)
SVG_SAMPLED_ROWS = 64
SVG_FIRST_ROWS = 10_000
XATTENTION_STRIDE = 8
# Shares of key blocks at pooling levels 0, 1 and 3 of PSA's default preset; level 2 is unused there.
PSA_SHARES = ((0, 0.10), (1, 0.05), (3, 0.20))
PSA_LEVELS = 4


def _same_order(mask: BlockMask, tokens: OrderedTokens) -> Answer:
    return Answer(mask, tokens.order, tokens.key, tokens.value)


def _own_orders(task: SelectorTask, keep: torch.Tensor, order: torch.Tensor) -> Answer:
    """An answer with a token order for each head, `[H, S]`."""
    heads = task.heads
    return Answer(task.mask(keep), order, gather_tokens(heads.key, order), gather_tokens(heads.value, order))


def uniform_random(task: SelectorTask, knob: float, _: float) -> Answer:
    """Tiles drawn without replacement, as many in every row."""
    tokens = task.ordered("gilbert")
    shape = (1, task.num_heads, task.q_layout.num_tiles, task.kv_layout.num_tiles)
    rank = torch.rand(shape, generator=torch.Generator().manual_seed(0)).argsort(-1).argsort(-1)
    return _same_order(task.mask(rank < task.tiles_at(knob)), tokens)


def oracle(task: SelectorTask, knob: float, _: float) -> Answer:
    """The tiles of the largest true mass in every row, in the token order that gives the head the highest recall."""
    keeps, recalls, orders = [], [], []
    for name in ORDER_NAMES:
        mass = task.true_mass(name)
        mask = select_tiles(mass, task.q_layout, task.kv_layout, max_tiles=task.tiles_at(knob))
        keeps.append(mask.to_dense())
        rows = task.q_layout.tile_rows()
        recalls.append((torch.where(keeps[-1], mass, 0).sum(-1) * rows).sum(-1))
        orders.append(task.ordered(name).order)
    best = torch.stack(recalls).argmax(0)[0]
    order = torch.stack(orders)[best]
    keep = torch.stack(keeps)[best, :, torch.arange(len(best))].transpose(0, 1)
    return _own_orders(task, keep, order)


def sparge_top_k(task: SelectorTask, knob: float, _: float) -> Answer:
    """Softmax of mean query against mean key, a fixed number per row: the call that SpargeAttn's authors recommend."""
    tokens = task.ordered("gilbert")
    scores = _pooled_scores(tokens, task)
    return _same_order(
        select_tiles(scores, task.q_layout, task.kv_layout, max_tiles=task.tiles_at(knob)),
        tokens,
    )


def sparge_cdf(task: SelectorTask, knob: float, density: float) -> Answer:
    """The same softmax to a cumulative mass; blocks whose tokens are not alike are always computed.

    The published gate (mean cosine under 0.6) may keep more than the density allows by itself. It is then lowered to
    the first value that leaves half of the density to the choice, which is what the authors' tuner searches for.
    """
    tokens = task.ordered("gilbert")
    alike_q = task.once("alike queries", lambda: self_similarity(tokens.query, task.q_layout))
    centred = tokens.key - tokens.key.mean(2, keepdim=True)
    alike_k = task.once("alike keys", lambda: self_similarity(centred, task.kv_layout))
    for gate in SPARGE_GATES:
        kept = (alike_q < gate).unsqueeze(-1) | (alike_k < gate).unsqueeze(-2)
        if kept.float().mean() <= density / 2:
            break
    scores = task.once(f"gated scores {gate}", lambda: _pooled_scores(tokens, task, alike_k < gate))
    return _same_order(
        task.mask(
            kept
            | select_tiles(
                scores, task.q_layout, task.kv_layout, top_p=knob, min_tiles=1, max_tiles=scores.shape[-1]
            ).to_dense()
        ),
        tokens,
    )


def _pooled_scores(tokens: OrderedTokens, task: SelectorTask, left_out: torch.Tensor | None = None) -> torch.Tensor:
    logits = tile_means(tokens.query, task.q_layout) @ tile_means(tokens.key, task.kv_layout).mT
    logits = logits / math.sqrt(tokens.query.shape[-1])
    if left_out is not None:
        logits = logits.masked_fill(left_out.unsqueeze(-2), -math.inf)
    return logits.softmax(-1).nan_to_num(0.0)


def svg1(task: SelectorTask, knob: float, density: float) -> Answer:
    """A band around the diagonal in frame-major order (spatial) or in place-major order (temporal).

    Exact attention of 64 random query rows decides for each head which of the two is nearer. The spatial mask also has
    the columns of the first frame; on clips of few frames these alone may take more than half of the density, and are
    then left out.
    """
    length = task.grid.length
    width = length * (1 - math.sqrt(1 - knob))
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(min(length, SVG_FIRST_ROWS), (SVG_SAMPLED_ROWS,), generator=rng)
    sink = length // task.grid.frames if density >= 2 / task.grid.frames else 0
    query = task.heads.query[:, :, rows]
    logits = query @ task.heads.key.mT / math.sqrt(query.shape[-1])
    exact = logits.softmax(-1) @ task.heads.value
    errors, keeps, orders = [], [], []
    for name, columns in (("raster", sink), ("space_major", 0)):
        order = task.ordered(name).order
        place = torch.empty_like(order).scatter_(0, order, torch.arange(length))
        band = ((place[rows].unsqueeze(1) - place).abs() <= width) | (torch.arange(length) < columns)
        near = logits.masked_fill(~band, -math.inf).softmax(-1) @ task.heads.value
        errors.append((near - exact).square().mean((2, 3))[0])
        q_first, k_first = (torch.arange(x.num_tiles) * x.tile for x in (task.q_layout, task.kv_layout))
        gap = torch.maximum(
            k_first - (q_first + task.q_tile - 1).unsqueeze(1),
            q_first.unsqueeze(1) - (k_first + task.kv_tile - 1),
        )
        keeps.append((gap <= width) | (k_first < columns))
        orders.append(order)
    best = torch.stack(errors).argmin(0)
    order = torch.stack(orders)[best]
    return _own_orders(task, torch.stack(keeps)[best].unsqueeze(0), order)


def radial(task: SelectorTask, knob: float, _: float) -> Answer:
    """Bands inside frame pairs, half as wide with every doubling of the frame distance; neighbours full, frame 0 kept.

    The knob is the log2 of the published `decay_factor`. A tile is kept if more than 60 % of its columns that are not
    empty are more than a third full. Neighbouring frames cannot be thinned, which bounds the density from below.
    """
    frame = task.grid.height * task.grid.width
    token = torch.arange(task.grid.length)
    distance = torch.arange(task.grid.frames)
    base = 2.0 ** (frame.bit_length() - torch.tensor([int(d).bit_length() for d in distance]))
    width = (base * 2.0**knob).clamp(min=task.kv_tile)
    every = (task.kv_tile / base).clamp(min=1).round().long()
    width[(distance % every) != 0] = -1
    width[:2] = frame
    keep = torch.zeros(task.q_layout.num_tiles, task.kv_layout.num_tiles, dtype=torch.bool)
    padding = (0, task.kv_layout.num_tiles * task.kv_tile - task.grid.length)
    for tile, rows in enumerate(token.split(task.q_tile)):
        apart = (rows.unsqueeze(1) // frame - token // frame).abs()
        near = (rows.unsqueeze(1) % frame - token % frame).abs() <= width[apart]
        columns = F.pad(near.float().mean(0), padding).view(-1, task.kv_tile)
        full, used = (columns > 1 / 3).sum(1), (columns > 0).sum(1)
        keep[tile] = (full > 0.6 * used) | (torch.arange(len(full)) * task.kv_tile < frame)
    return _same_order(task.mask(keep[None, None]), task.ordered("raster"))


def xattention(task: SelectorTask, knob: float, _: float) -> Answer:
    """Tokens folded by the stride along antidiagonals, one softmax over the folded keys, sums per block, cumulative."""
    tokens = task.ordered("raster")
    scores = task.once("antidiagonals", lambda: _antidiagonal_scores(tokens, task))
    mask = select_tiles(scores, task.q_layout, task.kv_layout, top_p=knob, min_tiles=1, max_tiles=scores.shape[-1])
    return _same_order(mask, tokens)


def _antidiagonal_scores(tokens: OrderedTokens, task: SelectorTask) -> torch.Tensor:
    stride, length = XATTENTION_STRIDE, task.grid.length
    folded = []
    for x, layout, flip in ((tokens.query, task.q_layout, True), (tokens.key, task.kv_layout, False)):
        groups = F.pad(x, (0, 0, 0, layout.num_tiles * layout.tile - length)).unflatten(2, (-1, stride))
        folded.append((groups.flip(3) if flip else groups).flatten(3))
    logits = folded[0] @ folded[1].mT / (stride * math.sqrt(tokens.query.shape[-1]))
    empty = torch.arange(logits.shape[-1]) * stride >= length
    mass = logits.masked_fill(empty, -math.inf).softmax(-1)
    mass = mass.unflatten(3, (-1, task.kv_tile // stride)).sum(4)
    scores: torch.Tensor = mass.unflatten(2, (-1, task.q_tile // stride)).mean(3)
    return scores


def psa(task: SelectorTask, knob: float, _: float) -> Answer:
    """Key blocks ranked by sampled importance; the first share is read in full, the next ones pooled by 2 and 8.

    The knob is a factor on the shares of the default preset (density .15, coverage .35). Blocks of `kv_tile` tokens
    are written as smaller tiles, so that a block pooled by 8 is one tile.
    """
    tokens = task.ordered("gilbert")
    blocks, fine = task.kv_layout, TileLayout(task.grid.key_segments, task.kv_tile >> (PSA_LEVELS - 1), PSA_LEVELS)
    importance = task.once("importance", lambda: _psa_importance(tokens, task))
    rank = importance.argsort(-1, descending=True).argsort(-1)
    levels = torch.full(rank.shape, -1)
    first = 0.0
    for level, share in PSA_SHARES:
        end = first + knob * share * blocks.num_tiles
        levels[(rank >= round(first)) & (rank < round(end))] = level
        first = end
    keeps = []
    for level in range(PSA_LEVELS):
        block = torch.arange(fine.level_tiles(level)) * (fine.tile << level) // task.kv_tile
        keeps.append(levels[..., block] == level)
    length = task.grid.length
    mask = BlockMask.from_dense(
        torch.cat(keeps, -1), q_len=length, kv_len=length, q_tile=task.q_tile, kv_tile=fine.tile, num_levels=PSA_LEVELS
    )
    return _same_order(mask, tokens)


def _psa_importance(tokens: OrderedTokens, task: SelectorTask) -> torch.Tensor:
    """Largest `exp(score - row maximum)` of a quarter of the tokens of each block pair, `[1, H, NQ, NK]`."""
    q_samples, kv_samples = task.q_tile // 4, task.kv_tile // 4
    query = tokens.query.index_select(2, stratified_rows(task.q_layout, q_samples))
    key = tokens.key.index_select(2, stratified_rows(task.kv_layout, kv_samples))
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    best = logits.unflatten(3, (-1, kv_samples)).amax(4)
    importance: torch.Tensor = (best - best.amax(-1, keepdim=True)).exp().unflatten(2, (-1, q_samples)).amax(3)
    return importance


BASELINES = (
    Selector(name="random", kind="baseline", source="uniformly drawn tiles", select=uniform_random),
    Selector(name="oracle", kind="oracle", source="true tile mass, best token order per head", select=oracle),
    Selector(name="SpargeAttn top-k", kind="baseline", source="arXiv 2502.18137, its top-k call", select=sparge_top_k),
    Selector(
        name="SpargeAttn cdf", kind="baseline", source="arXiv 2502.18137, cdf and gate", select=sparge_cdf, knob=(0, 1)
    ),
    Selector(name="SVG1", kind="baseline", source="arXiv 2502.01776", select=svg1, knob=(0, 1)),
    Selector(name="Radial", kind="baseline", source="arXiv 2506.19852", select=radial, knob=(-8, 4)),
    Selector(name="XAttention", kind="baseline", source="arXiv 2503.16428", select=xattention, knob=(0, 1)),
    Selector(name="PSA", kind="baseline", source="arXiv 2512.04025, default preset scaled", select=psa, knob=(0, 10)),
)
