"""Frames that every query sees, and frames whose queries see everything: all methods and orders obey."""

import dataclasses

import pytest
import torch

from fastdit import (
    AdaptiveConfig,
    CachedConfig,
    InvalidInputError,
    MixedConfig,
    PyramidConfig,
    StaticConfig,
    VideoGrid,
    sparse_attention,
)
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.mask_reuse import CallSite
from fastdit.orders import ORDER_NAMES, token_order
from fastdit.run_memory import RunMemory
from fastdit.selectors.score_order import score_order

TILES = {"q_tile": 16, "kv_tile": 8}
# 35 tokens a frame: frames end inside tiles, in every order.
GRID = VideoGrid(frames=6, height=5, width=7, text_length=11, text_first=True, kept_frames=2, dense_frames=1)
NO_TEXT = VideoGrid(frames=4, height=5, width=7, kept_frames=1)
HEADS = 3

METHODS = {
    "static": StaticConfig(pattern="multi_diagonal:1", **TILES),
    "skip": StaticConfig(pattern="skip", **TILES),
    "adaptive": AdaptiveConfig(density=0.15, **TILES),
    "top_p": AdaptiveConfig(top_p=0.3, max_density=0.2, estimator="rows", order="space_major", **TILES),
    "adaptive-auto": AdaptiveConfig(density=0.15, order="auto", **TILES),
    "pooled cover": AdaptiveConfig(density=0.4, complement="all", pooled_level=2, **TILES),
    "pyramid": PyramidConfig(density=0.3, num_levels=3, order="gilbert", **TILES),
    "pyramid-auto": PyramidConfig(density=0.3, num_levels=3, **TILES),
    "pyramid-own": PyramidConfig(density=0.2, num_levels=2, kv_samples=2, order="raster", **TILES),
    "pyramid-ranks": PyramidConfig(level_shares={0: 0.1, 2: 0.2}, **TILES),
    "top down": PyramidConfig(density=0.3, num_levels=3, search="top_down", order="score", **TILES),
    "cached": CachedConfig(source=AdaptiveConfig(density=0.15, **TILES), refresh_every=5),
    "exact mass": CachedConfig(
        source=AdaptiveConfig(density=0.15, **TILES), mass="exact", text_density=0.1, refresh_every=5
    ),
    "mixed": MixedConfig(
        heads={0: StaticConfig(pattern="skip", **TILES), 1: PyramidConfig(density=0.2, num_levels=2, **TILES)},
        default=AdaptiveConfig(density=0.15, **TILES),
    ),
}


def tensors(generator, grid):
    return tuple(torch.randn(2, grid.length, HEADS, 16, generator=generator) for _ in range(3))


def seen_at_level_0(mask, head, query_places, key_places):
    """bool `[B, S, S]` over tokens in the model's order: what one head of a mask lists at level 0."""
    listed = mask.to_dense()[:, head if mask.indices.shape[1] > 1 else 0].expand(2, -1, -1)
    for axis, layout in ((1, mask.q_layout), (2, mask.kv_layout)):
        parts = listed.narrow(axis, 0, layout.num_tiles).split(layout.segment_tiles(0), axis)
        whole = [
            part.repeat_interleave(layout.tile, axis).narrow(axis, 0, length)
            for part, length in zip(parts, layout.segments, strict=True)
        ]
        listed = torch.cat(whole, axis)
    return listed[:, query_places.argsort()][..., key_places.argsort()]


def one_step(config, grid, generator, memory=None, step=0):
    """The result of a step, the tokens that each query sees at level 0, `[B, H, S, S]`, and the tensors."""
    query, key, value = tensors(generator, grid)
    result = sparse_step(query, key, value, grid, config, MaskCache(), memory, CallSite(0, 0, "cond", step))
    seen = torch.zeros(2, HEADS, grid.length, grid.length, dtype=torch.bool)
    for launch in result.launches:
        for number, head in enumerate(launch.heads):
            # Rows are told apart by their values, so that no order is taken for granted.
            places = (
                places_of(tiled[0, number], model[0, :, head])
                for tiled, model in ((launch.query, query), (launch.key, key))
            )
            seen[:, head] = seen_at_level_0(launch.mask, number, *places)
    return result, seen, (query, key, value)


def places_of(rows, among):
    """For each row its place among others, by value."""
    return (rows[:, None] == among[None]).all(-1).int().argmax(1)


def tokens_of(grid, frames):
    return slice(grid.video_start, grid.video_start + frames * grid.height * grid.width)


@pytest.mark.parametrize("grid", [GRID, NO_TEXT], ids=["text", "no text"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_frames(name, grid, rng):
    _, seen, _ = one_step(METHODS[name], grid, rng)
    assert seen[..., tokens_of(grid, grid.kept_frames)].all()
    assert seen[:, :, tokens_of(grid, grid.dense_frames)].all()
    rest = seen[:, :, grid.video_start + grid.kept_length : grid.video_start + grid.video_length]
    assert rest[..., grid.video_start + grid.kept_length : grid.video_start + grid.video_length].float().mean() < 0.9


def test_queries_of_frames_that_are_only_kept_are_sparse(rng):
    _, seen, _ = one_step(METHODS["skip"], GRID, rng)
    dense, kept = tokens_of(GRID, 1), tokens_of(GRID, 2)
    only_kept = seen[:, :, dense.stop : kept.stop, GRID.video_start :]
    assert not only_kept[..., kept.stop - GRID.video_start :].all(-1).any()


@pytest.mark.parametrize("name", ["static", "adaptive", "top_p", "cached", "exact mass"])
def test_the_output_is_that_of_the_mask(name, rng):
    result, seen, qkv = one_step(METHODS[name], GRID, rng)
    query, key, value = (x.double().transpose(1, 2) for x in qkv)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)
    assert (result.out - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["pyramid-auto", "top down", "pooled cover", "mixed"])
def test_queries_of_dense_frames_get_dense_attention(name, rng):
    result, _, qkv = one_step(METHODS[name], GRID, rng)
    query, key, value = (x.transpose(1, 2) for x in qkv)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    places = tokens_of(GRID, 1)
    assert (result.out - dense)[:, places].abs().max() < 1e-5
    assert (result.out - dense).abs().max() > 1e-3


def test_a_reused_mask_keeps_the_frames(rng):
    memory = RunMemory()
    memory.begin(1)
    one_step(METHODS["cached"], GRID, rng, memory, 0)
    result, seen, _ = one_step(METHODS["cached"], GRID, rng, memory, 1)
    assert result.reuse is not None
    assert not result.reuse.built
    assert seen[..., tokens_of(GRID, 2)].all()
    assert seen[:, :, tokens_of(GRID, 1)].all()


@pytest.mark.parametrize("name", ORDER_NAMES)
@pytest.mark.parametrize("grid", [GRID, NO_TEXT, dataclasses.replace(GRID, text_first=False, kept_frames=5)])
def test_kept_frames_and_text_end_the_order(grid, name):
    order = token_order(grid, name)
    assert torch.equal(order.sort().values, torch.arange(grid.length))
    queries, keys = order.split(grid.query_segments), order.split(grid.key_segments)
    video = range(grid.video_start, grid.video_start + grid.video_length)
    text = set(range(grid.text_start, grid.text_start + grid.text_length))
    frame = grid.height * grid.width
    assert set(keys[1].tolist()) == set(video[: grid.kept_frames * frame]) | text
    if len(queries) > 1:
        assert set(queries[1].tolist()) == set(video[: grid.dense_frames * frame]) | text


def test_the_score_order_leaves_kept_frames_at_the_end(rng):
    query, key, _ = (x.transpose(1, 2) for x in tensors(rng, GRID))
    order = score_order(query, key, GRID)
    assert torch.equal(order.sort(1).values, torch.arange(GRID.length).expand(HEADS, -1))
    kept = token_order(GRID, "raster")[GRID.key_segments[0] :]
    assert (order[:, GRID.key_segments[0] :] == kept).all()


def test_without_kept_frames_nothing_changes():
    plain = VideoGrid(frames=6, height=5, width=7, text_length=11)
    assert plain.query_segments == plain.key_segments == (210, 11)
    assert VideoGrid(frames=6, height=5, width=7).key_segments == (210,)
    assert GRID.query_segments == (175, 46)
    assert GRID.key_segments == (140, 81)
    assert NO_TEXT.query_segments == (140,)
    assert NO_TEXT.key_segments == (105, 35)


def test_raw_tensors_take_kept_frames(rng):
    q, k, v = (torch.randn(1, 2, 210, 16, generator=rng) for _ in range(3))
    config = StaticConfig(pattern="skip", **TILES)
    out, stats = sparse_attention(q, k, v, config, grid=(6, 5, 7), kept_frames=1, dense_frames=1)
    assert (out - torch.nn.functional.scaled_dot_product_attention(q, k, v))[:, :, :35].abs().max() < 1e-5
    assert 2 / 6 - 1 / 36 < stats.density < 0.5


@pytest.mark.parametrize(("kept", "dense"), [(6, 0), (-1, 0), (1, 2), (1, -1)])
def test_impossible_frames_are_refused(kept, dense):
    with pytest.raises(InvalidInputError, match="dense_frames <= kept_frames < frames"):
        VideoGrid(frames=6, height=5, width=7, kept_frames=kept, dense_frames=dense)
