import math

import pytest
import torch

from fastdit_kernels import InvalidInputError, KernelUnavailableError, TileLayout, select_tiles

Q, KV = TileLayout((70,), 16), TileLayout((70,), 4)  # 5 query tiles, 18 key tiles


def masses(generator, heads=2, grain=256):
    """Rows of non-negative scores that sum to one exactly: sums of them have no rounding, in any order."""
    parts = torch.randint(0, KV.num_tiles, (1, heads, Q.num_tiles, grain), generator=generator)
    hits = torch.nn.functional.one_hot(parts, KV.num_tiles).sum(3)
    return hits.float() / grain


def by_definition(row, pinned, top_p, min_tiles, max_tiles):
    """Tiles one row keeps, in plain Python."""
    kept = [tile for tile, fixed in enumerate(pinned) if fixed]
    rest = sorted((tile for tile in range(len(row)) if not pinned[tile]), key=lambda tile: (-row[tile], tile))
    needed = 0
    if top_p is not None:
        total = 0.0
        for tile in (*kept, *rest):
            if total >= top_p:
                break
            total, needed = total + row[tile], needed + 1
        needed = min(max(needed, min_tiles), max_tiles)
    else:
        needed = max_tiles
    return sorted(kept + rest[: max(0, min(needed, len(row)) - len(kept))])


@pytest.mark.parametrize("top_p", [None, 0.0, 0.3, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("bounds", [(0, 18), (2, 6), (4, 4), (0, 0), (0, 30)])
@pytest.mark.parametrize("force", [False, True])
def test_rows_match_the_definition(top_p, bounds, force, rng):
    scores = masses(rng)
    forced = torch.rand(Q.num_tiles, KV.num_tiles, generator=rng) < 0.2 if force else None
    if forced is not None:
        forced[1] = True
    mask = select_tiles(scores, Q, KV, top_p=top_p, min_tiles=bounds[0], max_tiles=bounds[1], forced=forced)
    mask.validate()
    for head in range(2):
        for q in range(Q.num_tiles):
            pinned = [False] * KV.num_tiles if forced is None else forced[q].tolist()
            expected = by_definition(scores[0, head, q].tolist(), pinned, top_p, *bounds)
            listed = mask.indices[0, head, q].tolist()
            assert listed[: mask.counts[0, head, q]] == expected
            assert not any(listed[len(expected) :])


@pytest.mark.parametrize("top_p", [None, 0.3, 2.0])
@pytest.mark.parametrize(("max_tiles", "max_forced", "slots"), [(6, 5, 6), (2, 5, 5), (30, 5, 18), (2, 30, 18)])
def test_a_known_number_of_forced_tiles_bounds_the_slots(top_p, max_tiles, max_forced, slots, rng):
    scores = masses(rng)
    forced = torch.rand(Q.num_tiles, KV.num_tiles, generator=rng).argsort(-1).argsort(-1) < 5
    settings = {"top_p": top_p, "max_tiles": max_tiles, "forced": forced}
    expected = select_tiles(scores, Q, KV, **settings)
    mask = select_tiles(scores, Q, KV, **settings, max_forced=max_forced)
    assert torch.equal(mask.counts, expected.counts)
    assert torch.equal(mask.indices, expected.indices[..., :slots])


def test_more_forced_tiles_than_promised_stay_inside_the_list():
    forced = torch.ones(Q.num_tiles, KV.num_tiles, dtype=torch.bool)
    mask = select_tiles(torch.zeros(1, 1, 5, 18), Q, KV, max_tiles=2, forced=forced, max_forced=3)
    mask.validate()
    assert (mask.counts == 3).all()


def test_exactly_k_are_kept_among_equals():
    mask = select_tiles(torch.zeros(1, 1, Q.num_tiles, KV.num_tiles), Q, KV, max_tiles=3)
    assert mask.indices.flatten().tolist() == [0, 1, 2] * Q.num_tiles
    assert (mask.counts == 3).all()


def test_logits_of_any_sign_can_be_ranked(rng):
    scores = torch.randn(2, 3, Q.num_tiles, KV.num_tiles, generator=rng)
    mask = select_tiles(scores, Q, KV, max_tiles=5)
    assert torch.equal(mask.indices.long(), scores.topk(5).indices.sort(-1).values)


@pytest.mark.parametrize("forced", [None, torch.eye(5, 18).bool()])
@pytest.mark.parametrize("top_p", [None, 0.5])
def test_the_operator_is_registered_properly(forced, top_p, rng):
    scores = masses(rng)
    pinned = None if forced is None else forced.expand(scores.shape)
    torch.library.opcheck(torch.ops.fastdit.select_tiles.default, (scores, pinned, top_p, 1, 6, "auto", 4))


def test_wrong_inputs_are_refused():
    scores = torch.zeros(1, 1, 5, 18)
    with pytest.raises(InvalidInputError, match=r"\[B, H, 5, 18\]"):
        select_tiles(scores[..., 1:], Q, KV, max_tiles=2)
    with pytest.raises(InvalidInputError, match="min_tiles=3"):
        select_tiles(scores, Q, KV, max_tiles=2, min_tiles=3)
    with pytest.raises(InvalidInputError, match="accepted is bool"):
        select_tiles(scores, Q, KV, max_tiles=2, forced=scores)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        select_tiles(scores, Q, KV, max_tiles=2, implementation="triton")
    assert math.isfinite(select_tiles(scores, Q, KV, max_tiles=2).density())
