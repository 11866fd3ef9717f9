"""Static patterns against a brute-force predicate over all token pairs, written without the package's helpers."""

import dataclasses
import itertools
import json

import pytest
import torch

from fastdit import ConfigError, StaticConfig, VideoGrid
from fastdit.attend import sparse_step
from fastdit.mask_cache import MaskCache
from fastdit.orders import ORDER_NAMES, token_order
from fastdit.selectors import static
from fastdit.selectors.pattern_text import PATTERNS, parse_pattern
from fastdit.selectors.static_patterns import Diagonal, MultiDiagonal, Sink, Skip, Window
from fastdit_kernels import TileLayout, block_sparse_attention

GRIDS = [
    VideoGrid(frames=5, height=3, width=7),
    VideoGrid(frames=4, height=5, width=3, text_length=9),
    VideoGrid(frames=3, height=4, width=5, text_length=6, text_first=True),
    VideoGrid(frames=1, height=5, width=5),
    VideoGrid(frames=17, height=1, width=3),
]


# Predicates take the places (t, y, x) of queries as columns and of keys as rows, and broadcast.
def clipped(query, key, size, length):
    start = (query - size // 2).clamp(min=0).clamp(max=max(length - size, 0))
    return (start <= key) & (key < start + size)


def window(grid, q, k, frames=3, height=9, width=9):
    near = [
        clipped(q[axis], k[axis], size, (grid.frames, grid.height, grid.width)[axis])
        for axis, size in enumerate((frames, height, width))
    ]
    return near[0] & near[1] & near[2]


def raster(grid, cell):
    return (cell[0] * grid.height + cell[1]) * grid.width + cell[2]


def diagonal(grid, q, k, half_width=0.5):
    return (raster(grid, q) - raster(grid, k)).abs() <= round(half_width * grid.height * grid.width)


def multi_diagonal(grid, q, k, radius=1):
    return ((q[1] - k[1]).abs() <= radius) & ((q[2] - k[2]).abs() <= radius)


def stripe(grid, q, k, period=1024, width=128):
    return raster(grid, k) % period < width


def radial(grid, q, k, decay=0.2, min_width=128):
    distance = (q[0] - k[0]).abs()
    apart = (q[1] * grid.width + q[2] - k[1] * grid.width - k[2]).abs()
    allowed = distance <= 1
    for d in range(2, grid.frames):
        width = 2 ** len(f"{grid.height * grid.width:b}") / 2 ** len(f"{d:b}")
        if width >= min_width or d % int(min_width / width) == 0:
            allowed = allowed | ((distance == d) & (apart <= int(max(width * decay, min_width))))
    return allowed


def frames(grid, q, k, references=1):
    chosen = torch.zeros(grid.frames, dtype=torch.bool)
    chosen[[index * grid.frames // references for index in range(references)]] = True
    return (q[0] == k[0]) | chosen[k[0]]


def sink(grid, q, k, frames=1):
    return k[0] < frames


PREDICATES = {
    "window": window,
    "diagonal": diagonal,
    "multi_diagonal": multi_diagonal,
    "stripe": stripe,
    "radial": radial,
    "frames": frames,
    "sink": sink,
    "skip": lambda grid, q, k: k[0] < 0,
    "dense": lambda grid, q, k: k[0] >= 0,
}
CASES = {
    "window:3,2,4": ("window", (3, 2, 4)),
    "window:1,9,1": ("window", (1, 9, 1)),
    "diagonal:0.3": ("diagonal", (0.3,)),
    "multi_diagonal:0": ("multi_diagonal", (0,)),
    "multi_diagonal": ("multi_diagonal", ()),
    "stripe:20,3": ("stripe", (20, 3)),
    "radial:0.5,2": ("radial", (0.5, 2)),
    "radial:1.5,6": ("radial", (1.5, 6)),
    "frames:0": ("frames", (0,)),
    "frames:2": ("frames", (2,)),
    "sink:2": ("sink", (2,)),
    "skip": ("skip", ()),
    "dense": ("dense", ()),
}


def brute_force_pairs(grid, parts):
    """The predicate of all token pairs in the model's order, bool `[S, S]`; text pairs are all in."""
    cells = torch.tensor(list(itertools.product(range(grid.frames), range(grid.height), range(grid.width))))
    queries, keys = tuple(cells.T[:, :, None]), tuple(cells.T[:, None, :])
    video = torch.zeros(grid.video_length, grid.video_length, dtype=torch.bool)
    for name, values in parts:
        video |= PREDICATES[name](grid, queries, keys, *values)
    pairs = torch.ones(grid.length, grid.length, dtype=torch.bool)
    start = grid.text_length if grid.text_first else 0
    end = start + grid.video_length
    pairs[start:end, start:end] = video
    return pairs


def brute_force_tiles(grid, pairs, order, q_tile, kv_tile):
    """Rounded up to tiles, and the pairs in the order, rounded to what those tiles hold."""
    tokens = token_order(grid, order)
    pairs = pairs[tokens][:, tokens]

    def spans(tile):
        starts = [(0, grid.video_length), (grid.video_length, grid.length)]
        return [range(i, min(i + tile, end)) for first, end in starts for i in range(first, end, tile)]

    rows, columns = spans(q_tile), spans(kv_tile)
    keep = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    allowed = torch.zeros_like(pairs)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        shared = bool(set(row) & set(column))
        keep[i, j] = shared or bool(pairs[row.start : row.stop, column.start : column.stop].any())
        allowed[row.start : row.stop, column.start : column.stop] = keep[i, j]
    return keep, allowed


def select(config, grid):
    return config.select(torch.zeros(1, 1, grid.length, 4), None, None, grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("text", CASES)
def test_a_pattern_is_its_predicate_rounded_up_to_tiles(grid, text):
    pairs = brute_force_pairs(grid, [CASES[text]])
    for order in ORDER_NAMES:
        for q_tile, kv_tile in ((8, 4), (5, 6)):
            config = StaticConfig(pattern=text, order=order, q_tile=q_tile, kv_tile=kv_tile)
            mask = select(config, grid)
            mask.validate()
            expected, _ = brute_force_tiles(grid, pairs, order, q_tile, kv_tile)
            assert torch.equal(mask.to_dense()[0, 0], expected), (order, q_tile)


def test_unions_keep_what_any_part_keeps():
    grid = GRIDS[1]
    texts = ("window:1,3,3", "stripe:20,3", "sink")
    pairs = brute_force_pairs(grid, [("window", (1, 3, 3)), ("stripe", (20, 3)), ("sink", ())])
    mask = select(StaticConfig(pattern=" | ".join(texts), q_tile=8, kv_tile=4), grid)
    expected, _ = brute_force_tiles(grid, pairs, "gilbert", 8, 4)
    assert torch.equal(mask.to_dense()[0, 0], expected)


def test_the_defaults_are_the_predicates_defaults():
    grid = VideoGrid(frames=9, height=12, width=13)  # a frame is wider than the radial band of far frames
    for name in PATTERNS:
        mask = select(StaticConfig(pattern=name, q_tile=32, kv_tile=16), grid)
        expected, _ = brute_force_tiles(grid, brute_force_pairs(grid, [(name, ())]), "gilbert", 32, 16)
        assert torch.equal(mask.to_dense()[0, 0], expected), name
        assert name == "dense" or not expected.all(), name


def test_chunks_do_not_change_the_mask(monkeypatch):
    config = StaticConfig(pattern="radial:0.5,2|multi_diagonal", q_tile=8, kv_tile=4)
    whole = select(config, GRIDS[0])
    monkeypatch.setattr(static, "CHUNK_CELLS", 3 * GRIDS[0].video_length)
    assert torch.equal(select(config, GRIDS[0]).to_dense(), whole.to_dense())


@pytest.mark.parametrize("grid", [GRIDS[0], VideoGrid(frames=7, height=5, width=6, text_length=9)], ids=str)
@pytest.mark.parametrize("order", ORDER_NAMES)
def test_attention_equals_masked_dense_attention(grid, order, rng):
    config = StaticConfig(pattern="window:2,3,2|sink", order=order, q_tile=8, kv_tile=4)
    q, k, v = (torch.randn(2, 3, grid.length, 16, generator=rng) for _ in range(3))
    pairs = brute_force_pairs(grid, [("window", (2, 3, 2)), ("sink", ())])
    _, allowed = brute_force_tiles(grid, pairs, order, 8, 4)
    tokens = token_order(grid, order)
    q, k, v = (x[:, :, tokens] for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    out = block_sparse_attention(q, k, v, config.select(q, k, v, grid))
    assert not allowed.all()
    assert torch.allclose(out, expected, atol=1e-5)


def test_a_mask_is_built_once_for_each_geometry(rng):
    cache, config = MaskCache(), StaticConfig(pattern="sink", q_tile=8, kv_tile=4)
    masks = []
    for grid in (GRIDS[0], GRIDS[0], GRIDS[1], GRIDS[0]):
        q, k, v = (torch.randn(1, grid.length, 2, 8, generator=rng) for _ in range(3))
        masks.append(sparse_step(q, k, v, grid, config, cache).mask)
    assert masks[0] is masks[1] is masks[3]
    assert masks[2].kv_layout.segments == GRIDS[1].key_segments


def test_patterns_are_values_with_a_text_form():
    pattern = Window(frames=2, height=4, width=4) | Sink() | MultiDiagonal(radius=0)
    assert str(pattern) == "window:2,4,4|sink:1|multi_diagonal:0"
    for text in (*CASES, str(pattern)):
        assert parse_pattern(str(parse_pattern(text))) == parse_pattern(text)
    assert parse_pattern("window:width=5,frames=1") == Window(frames=1, width=5)
    assert parse_pattern("diagonal:0.25") == Diagonal(half_width=0.25)
    assert (Sink() | Sink() | Skip()) == (Sink() | Skip())
    assert StaticConfig(pattern="sink") == StaticConfig(pattern=Sink())
    assert len({StaticConfig(pattern="sink"), StaticConfig(pattern=Sink())}) == 1
    plain = StaticConfig(pattern=Sink(2) | Skip()).to_dict()
    assert json.loads(json.dumps(plain))["pattern"] == "sink:2|skip"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("spiral", "'spiral' is unknown; accepted are window, diagonal"),
        ("", "is unknown"),
        ("sink|", "is unknown"),
        ("sink:1,2", "'2' does not fit sink; accepted is once each of frames"),
        ("window:depth=2", "does not fit window"),
        ("window:2,frames=3", "does not fit window"),
        ("skip:1", "accepted is no values"),
        ("sink:few", "frames='few' is no number of type int"),
        ("sink:1.5", "no number of type int"),
        ("sink:0", "sink frames=0"),
        ("window:1,0,1", "window height=0"),
        ("diagonal:-1", "finite number above 0"),
        ("diagonal:nan", "finite number above 0"),
        ("radial:inf", "finite number above 0"),
        (3, "accepted is a text"),
    ],
)
def test_bad_patterns_are_refused(pattern, message):
    with pytest.raises(ConfigError, match=message):
        StaticConfig(pattern=pattern)


def test_every_pattern_refuses_bad_values():
    for kind in PATTERNS.values():
        for field in dataclasses.fields(kind):
            with pytest.raises(ConfigError, match=field.name):
                kind(**{field.name: -1})


def test_text_is_kept_by_a_pattern_that_keeps_nothing():
    grid = GRIDS[1]
    keep = select(StaticConfig(pattern="skip", q_tile=8, kv_tile=4), grid).to_dense()[0, 0]
    video_q, video_k = (
        TileLayout(grid.query_segments, 8).segment_tiles(0)[0],
        TileLayout(grid.key_segments, 4).segment_tiles(0)[0],
    )
    assert keep[video_q:].all()
    assert keep[:, video_k:].all()
    assert (keep[:video_q, :video_k].sum(1) <= 2).all()
