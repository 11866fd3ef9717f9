"""Recorded calls against brute force, and recorded runs against unrecorded ones."""

import dataclasses

import numpy as np
import pytest
import torch

import fastdit
from fastdit.recorded_call import DROPPED, RecordedCall, RecordedLaunch, row_levels
from fastdit.recorded_run import RecordedRun
from fastdit.recorder import AttentionRecorder
from fastdit_kernels import BlockMask, TileLayout

SMALL = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0}
PYRAMID = fastdit.PyramidConfig(density=0.4, schedule=fastdit.Schedule(dense_steps=1, dense_layers=()), **SMALL)


def brute_levels(mask, head, tile):
    """Token by token: the level of the listed tile that holds it."""
    layout, found, first = mask.kv_layout, [], 0
    listed = set(mask.to_dense()[0, head, tile].nonzero().flatten().tolist())
    for segment, length in enumerate(layout.segments):
        for token in range(length):
            seen = DROPPED
            for level in range(layout.num_levels):
                row = token >> level
                number = layout.level_offset(level) + sum(layout.segment_tiles(level)[:segment]) + row // layout.tile
                if number in listed:
                    seen = level
            found.append(seen)
        first += length
    return found


def random_cut(layout, q_tiles, rng):
    """Disjoint tiles of all levels for each query tile, by descending from the top."""
    keep = torch.zeros(1, 2, q_tiles, layout.total_tiles, dtype=torch.bool)
    for head in range(2):
        for row in range(q_tiles):
            for segment in range(len(layout.segments)):
                open_tiles = [
                    (layout.num_levels - 1, i) for i in range(layout.segment_tiles(layout.num_levels - 1)[segment])
                ]
                while open_tiles:
                    level, place = open_tiles.pop()
                    choice = int(torch.randint(3, (), generator=rng))
                    if choice == 0 and level:
                        count = layout.segment_tiles(level - 1)[segment]
                        open_tiles += [(level - 1, i) for i in (2 * place, 2 * place + 1) if i < count]
                    elif choice == 1:
                        offset = layout.level_offset(level) + sum(layout.segment_tiles(level)[:segment])
                        keep[0, head, row, offset + place] = True
    return keep


def test_levels_of_keys_are_those_of_their_tiles(rng):
    layout, queries = TileLayout((37, 6), 4, 3), TileLayout((37, 6), 8)
    keep = random_cut(layout, queries.num_tiles, rng)
    mask = BlockMask.from_dense(keep, q_len=(37, 6), kv_len=(37, 6), q_tile=8, kv_tile=4, num_levels=3)
    mask.validate()
    found = set()
    for head in range(2):
        for tile in range(queries.num_tiles):
            levels = row_levels(mask, head, tile).tolist()
            assert levels == brute_levels(mask, head, tile)
            found |= set(levels)
    assert found == {DROPPED, 0, 1, 2}


def test_orders_are_undone_for_queries_and_keys(rng):
    grid = fastdit.VideoGrid(frames=3, height=3, width=4, text_length=5)
    segments = grid.key_segments
    layout, queries = TileLayout(segments, 4, 2), TileLayout(grid.query_segments, 8)
    keep = random_cut(layout, queries.num_tiles, rng)
    mask = BlockMask.from_dense(keep, q_len=segments, kv_len=segments, q_tile=8, kv_tile=4, num_levels=2)

    def shuffle():
        return torch.cat([torch.randperm(36, generator=rng), torch.arange(36, 41)])

    q_order, k_order = shuffle(), torch.stack([shuffle(), shuffle()])
    q, k = (torch.randn(3, 41, 8, generator=rng) for _ in range(2))
    launch = RecordedLaunch((2, 0), mask, q_order.int(), k_order.int())
    call = RecordedCall(
        transformer=0,
        layer=0,
        step=0,
        branch="cond",
        phase=0,
        grid=grid,
        dense_reason=None,
        query=q,
        key=k,
        launches=(launch,),
    )
    for head, place in ((2, 0), (0, 1)):
        for token in (0, 7, 35, 36, 40):
            position = q_order.tolist().index(token)
            tile = position // 8 if position < 36 else 5 + (position - 36) // 8
            # The tile's rows stop at the end of its segment.
            members = [p for p in range(41) if (p // 8 if p < 36 else 5 + (p - 36) // 8) == tile]
            assert call.query_tile(head, token).tolist() == sorted(q_order[p].item() for p in members)
            expected = [0] * 41
            for p, level in enumerate(brute_levels(mask, place, tile)):
                expected[k_order[place, p]] = level
            assert call.key_levels(head, token).tolist() == expected
    # A head without a mask sees everything.
    assert call.key_levels(1, 3).tolist() == [0] * 41
    assert call.query_tile(1, 3).tolist() == [3]
    probabilities = torch.softmax((q[1, 3].double() @ k[1].double().T) / 8**0.5, 0)
    torch.testing.assert_close(call.attention(1, 3).double(), probabilities, atol=1e-6, rtol=1e-4)
    with pytest.raises(fastdit.InvalidInputError, match="heads 0 to 2"):
        call.attention(3, 0)
    with pytest.raises(fastdit.InvalidInputError, match="tokens 0 to 40"):
        call.key_levels(0, 41)


def test_a_recorded_run_is_the_run_that_enable_makes(tiny_wan, run):
    with fastdit.enable(tiny_wan, PYRAMID) as session:
        plain, density, summary = run(tiny_wan), session.stats.density(), session.summary()
    before = [block.attn1.processor for block in tiny_wan.transformer.blocks]
    with AttentionRecorder(tiny_wan, PYRAMID, steps=(2,), layers=(1,)) as recorder:
        assert torch.equal(run(tiny_wan), plain)
    assert [block.attn1.processor for block in tiny_wan.transformer.blocks] == before
    assert recorder.session.stats.density() == density
    assert recorder.session.summary() == summary
    assert list(recorder.calls) == [(0, 1, 2)]
    assert recorder.recalls.keys() == {(0, layer, step) for layer in (0, 1) for step in (1, 2, 3)}
    call = recorder.calls[0, 1, 2]
    assert (call.grid.frames, call.grid.height, call.grid.width) == (3, 2, 3)
    # What the mask says is what was counted.
    record = recorder.session.stats.records[0, 1, call.branch, 2]
    masks = {head: one.mask for one in call.launches for head in one.heads}
    kept = [int(mask.kept_pairs().expand(1, 2)[0, head]) for head, mask in masks.items()]
    assert kept == record.kept_pairs.tolist()


def test_recall_is_that_of_the_masks(tiny_wan, run):
    # Of 18 rows a few are sampled; they tell of all within the bound in unshifted tiles, and miss it by .02 in others.
    config = dataclasses.replace(PYRAMID, shift_tiles=False)
    with AttentionRecorder(tiny_wan, config, steps=(1, 2), layers=(0,)) as recorder:
        run(tiny_wan)
    for place, call in recorder.calls.items():
        for head in range(call.num_heads):
            fine = [
                float(call.attention(head, token)[call.key_levels(head, token) == 0].sum())
                for token in range(call.grid.length)
            ]
            # All rows here, sampled ones there.
            assert float(recorder.recalls[place].recall[head]) == pytest.approx(sum(fine) / len(fine), abs=0.1)


def test_dense_calls_are_recorded_too(tiny_wan, run):
    dense = run(tiny_wan)
    config = fastdit.AdaptiveConfig(schedule=fastdit.Schedule(dense_steps=1.0), **SMALL)
    with AttentionRecorder(tiny_wan, config, steps=(0, 3), layers=(0, 1)) as recorder:
        torch.testing.assert_close(run(tiny_wan), dense, atol=1e-4, rtol=1e-4)
    assert {call.dense_reason for call in recorder.calls.values()} == {"dense_steps"}
    assert len(recorder.calls) == 4
    assert not recorder.recalls


def test_what_finds_no_room_is_counted(tiny_wan, run):
    with AttentionRecorder(tiny_wan, PYRAMID, steps=(1, 2), layers=(0, 1), max_bytes=10_000) as recorder:
        run(tiny_wan)
    assert recorder.left_out
    assert len(recorder.calls) + recorder.left_out == 4
    assert sum(call.num_bytes for call in recorder.calls.values()) <= 10_000


def test_an_enabled_pipeline_is_refused_and_stays_as_it_is(tiny_wan):
    with fastdit.enable(tiny_wan, PYRAMID):
        processors = [block.attn1.processor for block in tiny_wan.transformer.blocks]
        with pytest.raises(fastdit.AlreadyEnabledError), AttentionRecorder(tiny_wan, PYRAMID, (0,), (0,)):
            pass
        assert [block.attn1.processor for block in tiny_wan.transformer.blocks] == processors


def test_a_saved_run_comes_back_as_it_was(tiny_wan, run, tmp_path):
    tiny_wan.transformer.to(torch.bfloat16)
    config = fastdit.CachedConfig(
        source=fastdit.PyramidConfig(density=0.4, **SMALL), refresh_every=2, schedule=PYRAMID.schedule
    )
    with AttentionRecorder(tiny_wan, config, steps=(0, 2), layers=(0, 1)) as recorder:
        run(tiny_wan)
    kept = RecordedRun.of(recorder, ends=(0.5, 1.0))
    kept.save(tmp_path / "deep" / "run")
    found = RecordedRun.load(tmp_path / "deep" / "run")
    assert found.names == ("transformer",)
    assert found.calls.keys() == kept.calls.keys() == {(0, layer, step) for layer in (0, 1) for step in (0, 2)}
    for name in ("density", "recall", "age"):
        assert np.array_equal(getattr(found, name)[0], getattr(kept, name)[0], equal_nan=True)
    # Steps 1 and 3 build, step 2 reuses; step 0 is dense.
    assert np.array_equal(found.age[0][:, 0], [np.nan, 0, 1, 0], equal_nan=True)
    assert np.isnan(found.recall[0][0]).all()
    assert not np.isnan(found.recall[0][1:]).any()
    for site in kept.calls:
        first, second = kept.call(site), found.call(site)
        assert first.query.dtype == torch.bfloat16
        assert torch.equal(first.query, second.query)
        assert torch.equal(first.key_levels(1, 5), second.key_levels(1, 5))
        assert torch.equal(first.attention(0, 7), second.attention(0, 7))
    with pytest.raises(fastdit.InvalidInputError, match="not recorded"):
        found.call((0, 0, 1))
    (tmp_path / "deep" / "run" / "call-0-0-0.npz").write_bytes(b"PK")
    with pytest.raises(fastdit.InvalidInputError, match="damaged"):
        found.call((0, 0, 0))
    with pytest.raises(fastdit.InvalidInputError, match="no recorded run"):
        RecordedRun.load(tmp_path)


def test_density_of_heads_adds_up_to_that_of_the_run(tiny_wan, run):
    with AttentionRecorder(tiny_wan, PYRAMID, steps=(), layers=()) as recorder:
        run(tiny_wan)
    found = RecordedRun.of(recorder)
    stats = recorder.session.stats
    assert found.density[0].shape == (4, 2, 2)
    assert found.density[0].mean() == pytest.approx(stats.density(), rel=1e-5)
    for (layer, step), density in stats.layer_step_density().items():
        assert found.density[0][step, layer].mean() == pytest.approx(density, rel=1e-5)
    # Four steps, four quarters.
    assert np.allclose(found.phase_density(), found.density[0])
    halves = RecordedRun.of(recorder, ends=(0.5, 1.0)).phase_density()
    assert np.allclose(halves[1], found.density[0][2:].mean(0))
