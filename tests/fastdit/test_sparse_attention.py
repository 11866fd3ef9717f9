import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import fastdit
from fastdit import AdaptiveConfig, StaticConfig
from fastdit.config import METHODS
from fastdit.orders import token_order
from fastdit.recall import covered_tiles, exact_recall
from fastdit_kernels import BlockMask, TileLayout

GRID, TEXT = (4, 5, 7), 11
TILES = {"q_tile": 16, "kv_tile": 8}
# Settings with which a method keeps everything, and with which it keeps less.
WHOLE = {
    "adaptive": {"density": 1.0},
    "pyramid": {"density": 1.0},
    "static": {"pattern": "dense"},
    "cached": {"source": AdaptiveConfig(density=1.0)},
    "mixed": {"heads": {0: "dense", 1: StaticConfig(pattern="dense")}, "default": AdaptiveConfig(density=1.0)},
}
LESS = {
    "adaptive": {"density": 0.4},
    "pyramid": {"density": 0.4, "num_levels": 1},
    "static": {"pattern": "window:2,3,3|sink"},
    "cached": {"source": AdaptiveConfig(density=0.4)},
    "mixed": {"heads": {1: StaticConfig(pattern="window:2,3,3|sink")}, "default": AdaptiveConfig(density=0.4)},
}


def tensors(generator, length=4 * 5 * 7 + TEXT, batch=2, heads=3):
    return tuple(torch.randn(batch, heads, length, 16, generator=generator) for _ in range(3))


def allowed_pairs(mask, grid, order):
    """The token pairs of a level-0 mask in raster order, bool `[B, H, S, S]`."""
    keep = mask.to_dense()
    rows = torch.arange(mask.q_layout.num_tiles).repeat_interleave(mask.q_tile)
    columns = torch.arange(mask.kv_layout.num_tiles).repeat_interleave(mask.kv_tile)
    rows = rows[mask.q_layout.row_members() > 0]
    columns = columns[mask.kv_layout.row_members() > 0]
    place = torch.argsort(token_order(grid, order))
    return keep[:, :, rows[place]][..., columns[place]]


def test_every_method_is_covered():
    assert WHOLE.keys() == LESS.keys() == METHODS.keys()


@pytest.mark.parametrize("order", ["gilbert", "space_major"])
@pytest.mark.parametrize("method", METHODS)
def test_all_of_it_is_dense_attention(method, order, rng):
    q, k, v = tensors(rng)
    config = METHODS[method](order=order, **TILES, **WHOLE[method])
    out, stats = fastdit.sparse_attention(q, k, v, config, grid=GRID, text_length=TEXT, recall=True)
    assert torch.allclose(out, scaled_dot_product_attention(q, k, v), atol=1e-5)
    assert stats.density == pytest.approx(1.0)
    assert torch.allclose(stats.recall, torch.ones(2, 3), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_less_is_dense_attention_under_the_mask(method, rng):
    q, k, v = tensors(rng)
    config = METHODS[method](order="gilbert", **TILES, **LESS[method])
    out, stats = fastdit.sparse_attention(q, k, v, config, grid=GRID, text_length=TEXT, recall=True)
    geometry = fastdit.VideoGrid(frames=4, height=5, width=7, text_length=TEXT)
    allowed = allowed_pairs(stats.mask, geometry, "gilbert")
    assert torch.allclose(out, scaled_dot_product_attention(q, k, v, attn_mask=allowed), atol=1e-5)
    assert stats.density == pytest.approx(allowed.float().mean().item(), abs=1e-6)
    assert stats.density < 0.9
    mass = torch.where(allowed, (q @ k.mT / 4).softmax(-1), 0).sum(-1).mean(-1)
    assert torch.allclose(stats.recall, mass, atol=1e-5)
    assert (stats.recall < 0.99).all()


def test_recall_is_measured_on_request_only(rng):
    q, k, v = tensors(rng, length=140)
    out, stats = fastdit.sparse_attention(q, k, v, StaticConfig(**TILES), grid=GRID)
    assert stats.recall is None
    assert out.shape == q.shape


def test_the_run_rules_do_not_apply_to_a_single_call(rng):
    q, k, v = tensors(rng, length=140)
    config = StaticConfig(pattern="skip", min_tokens=10_000, schedule=fastdit.Schedule(dense_steps=1.0), **TILES)
    assert fastdit.sparse_attention(q, k, v, config, grid=GRID)[1].density < 0.3


def test_pooled_tiles_cover_the_tiles_below_them(rng):
    segments, levels = (45, 11), 3
    q_layout, kv_layout = TileLayout(segments, 16), TileLayout(segments, 4, levels)
    keep = torch.zeros(1, 1, q_layout.num_tiles, kv_layout.total_tiles, dtype=torch.bool)
    keep[..., 1] = True  # level 0: tokens 4 to 8
    keep[..., kv_layout.level_offset(1) + 1] = True  # level 1: tokens 8 to 16
    keep[..., kv_layout.level_offset(2) + 2] = True  # level 2: tokens 32 to 45, ragged
    mask = BlockMask.from_dense(keep, q_len=segments, kv_len=segments, q_tile=16, kv_tile=4, num_levels=levels)
    mask.validate()
    assert covered_tiles(mask)[0, 0, 0].nonzero().flatten().tolist() == [1, 2, 3, 8, 9, 10, 11]
    q, k = (torch.randn(1, 1, 56, 8, generator=rng) for _ in range(2))
    mass = (q @ k.mT / 8**0.5).softmax(-1)
    expected = torch.cat([mass[..., 4:16], mass[..., 32:45]], -1).sum(-1).mean(-1)
    assert torch.allclose(exact_recall(q, k, mask), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, "three sizes"),
        (
            {"grid": (4, 5, 8)},
            r"query is \(2, 3, 140, 16\): accepted with this grid and text_length is \[B, H, 160, D\]",
        ),
        ({"text_length": 1}, "141"),
        ({"grid": (0, 5, 7)}, "positive sizes"),
        ({"config": "adaptive"}, "accepted is a config"),
        ({"key": torch.zeros(2, 1, 140, 16)}, "key is"),
        ({"value": torch.zeros(2, 3, 140, 16, dtype=torch.float16)}, "all three must agree"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, rng):
    q, k, v = tensors(rng, length=140)
    call = {"query": q, "key": k, "value": v, "config": AdaptiveConfig(**TILES), "grid": GRID, **change}
    with pytest.raises(fastdit.InvalidInputError, match=message):
        fastdit.sparse_attention(**call)


REMAINDER_SETTINGS = {"q_tile": 8, "kv_tile": 4, "density": 1.0}
REMAINDER_CONFIGS = [fastdit.AdaptiveConfig(**REMAINDER_SETTINGS), fastdit.PyramidConfig(**REMAINDER_SETTINGS)]


@pytest.mark.parametrize("config", REMAINDER_CONFIGS, ids=["adaptive", "pyramid"])
@pytest.mark.parametrize("text_length", [0, 3])
def test_every_remainder_of_tiles_is_exact_at_full_density(config, text_length):
    """Two query tiles' worth of lengths: every remainder of both tile sizes, and sequences of one tile."""
    rng = torch.Generator().manual_seed(0)
    for length in range(1, 2 * config.q_tile + 1):
        tensors = [torch.randn(1, 2, length + text_length, 16, generator=rng) for _ in range(3)]
        exact = scaled_dot_product_attention(*tensors)
        for grid in ((length, 1, 1), (1, 1, length)):
            out, _ = fastdit.sparse_attention(*tensors, config, grid=grid, text_length=text_length)
            assert torch.allclose(out, exact, atol=1e-5), (length, grid)
