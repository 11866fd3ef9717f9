"""Cuts found from the top: near the full search where everything is opened, and no table of all tile pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdit import ConfigError, PyramidConfig, VideoGrid, sparse_attention
from fastdit.selectors import pyramid
from fastdit.selectors.own_tiles import OwnTiles, own_tiles
from fastdit.selectors.pyramid_top_down import select_top_down
from fastdit_eval.attention_heads import make_heads
from fastdit_eval.selector_task import SelectorTask
from fastdit_kernels import TileLayout, block_sparse_attention


def layouts(length, q_tile=32, kv_tile=16, levels=4, text=0):
    segments = (length, text) if text else (length,)
    return TileLayout(segments, q_tile), TileLayout(segments, kv_tile, levels)


def random_qkv(length, generator, batch=1, heads=2, dim=12):
    return [torch.randn(batch, heads, length, dim, generator=generator) * gain for gain in (2, 1, 1)]


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation returned, and the multiplications of all matmuls."""

    def __init__(self):
        super().__init__()
        self.elements = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                # A broadcast view takes no memory.
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            self.products += out.numel() * args[0].shape[-1]
        return out


@pytest.mark.parametrize("levels", [1, 2, 6])
@pytest.mark.parametrize("kv_tile", [7, 16])
@pytest.mark.parametrize("length", [7, 128, 203])
def test_every_level_and_tile_size_gives_a_valid_mask_within_budget(rng, length, kv_tile, levels):
    q, k, v = random_qkv(length, rng)
    for budget in (1, 3):
        mask = select_top_down(q, k, v, *layouts(length, kv_tile=kv_tile, levels=levels), budget=budget, beam=2)
        mask.validate()
        assert mask.counts.min() >= 1
        assert mask.counts.max() <= budget


@pytest.mark.parametrize("text", [0, 13])
def test_with_everything_opened_it_errs_hardly_more_than_the_full_search(rng, text):
    q, k, v = random_qkv(403 + text, rng)
    exact = F.scaled_dot_product_attention(q, k, v)
    for budget in (4, 8):
        errors = []
        (whole,) = pyramid.select(q, k, v, *layouts(403, text=text), budgets=[budget])
        opened = select_top_down(q, k, v, *layouts(403, text=text), budget=budget, beam=99)
        for mask in (whole, opened):
            errors.append((block_sparse_attention(q, k, v, mask) - exact)[:, :, :403].norm())
        assert errors[1] < 1.1 * errors[0]


def test_full_budget_and_beam_are_dense_attention(rng):
    q, k, v = random_qkv(150 + 21, rng)
    q_layout, kv_layout = layouts(150, text=21)
    mask = select_top_down(q, k, v, q_layout, kv_layout, budget=kv_layout.num_tiles, beam=99)
    assert torch.allclose(block_sparse_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v), atol=1e-4)


def test_own_tiles_are_kept_in_the_heads_that_ask_for_it(rng):
    q, _, v = random_qkv(203, rng, batch=2)
    q_layout, kv_layout = layouts(203)
    heads = torch.tensor([True, False])
    own = OwnTiles.of(q_layout, kv_layout, heads)
    mask = select_top_down(q, -2 * q, v, q_layout, kv_layout, budget=1, beam=1, own=own)
    mask.validate()
    expected = own_tiles(q_layout, TileLayout((203,), 16), q.device)
    fine = mask.to_dense()[..., : kv_layout.num_tiles]
    assert torch.equal(fine[:, 0], expected.expand(2, -1, -1))
    assert (mask.counts[:, 0] == expected.sum(1)).all()
    assert (mask.counts[:, 1] == 1).all()


def test_batch_entries_and_heads_do_not_mix(rng, monkeypatch):
    monkeypatch.setattr("fastdit.selectors.pyramid_search.CPU_WORKSPACE_BYTES", 1)
    q, k, v = random_qkv(130, rng, batch=2, heads=2)
    together = select_top_down(q, k, v, *layouts(130), budget=3, beam=2)
    monkeypatch.undo()
    for batch in range(2):
        for head in range(2):
            one = [x[batch : batch + 1, head : head + 1] for x in (q, k, v)]
            alone = select_top_down(*one, *layouts(130), budget=3, beam=2)
            assert torch.equal(alone.to_dense()[0, 0], together.to_dense()[batch, head])


def test_no_table_of_tile_pairs_at_131072_tokens(rng):
    """Neither the largest tensor nor the products grow with query tiles x key tiles."""
    length, samples, dim = 131072, 1, 8
    q, k, v = random_qkv(length, rng, heads=1, dim=dim)
    q_layout, kv_layout = TileLayout((length,), 1024), TileLayout((length,), 64, 8)
    with Largest() as seen:
        mask = select_top_down(q, k, v, q_layout, kv_layout, budget=12, beam=6, q_samples=samples)
    assert mask.counts.max() <= 12
    # Tokens with their 8 channels, or the values with 8 of theirs and the mass: nothing is larger.
    assert seen.elements <= 1.01 * length * (dim + 1)
    rows = q_layout.num_tiles * samples
    full = rows * length * dim  # scores alone of the search through all tiles
    assert seen.products < 0.25 * full


def test_a_few_opened_tiles_find_local_attention():
    """The beam is a fraction of the tiles; the error stays near that of the full search."""
    heads = make_heads("local", VideoGrid(frames=4, height=12, width=16), seeds=(0,))
    task = SelectorTask(heads, 32, 16)
    tokens = task.ordered("gilbert")
    errors = []
    for settings in ({}, {"search": "top_down", "beam": 6}):
        config = PyramidConfig(q_tile=32, kv_tile=16, order="gilbert", num_levels=5, density=0.2, **settings)
        mask = config.select(tokens.query, tokens.key, tokens.value, heads.grid)
        out = block_sparse_attention(tokens.query, tokens.key, tokens.value, mask)
        errors.append((out - F.scaled_dot_product_attention(tokens.query, tokens.key, tokens.value)).norm())
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": "sideways"}, "top_down"),
        ({"beam": 4}, "top_down"),
        ({"search": "top_down", "beam": 0}, "beam"),
        ({"search": "top_down", "kv_samples": 4}, "kv_samples"),
        ({"search": "top_down", "level_shares": {0: 0.1}}, "level_shares"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PyramidConfig(**settings)


def test_auto_orders_and_text_at_full_density_are_dense_attention(rng):
    grid = VideoGrid(frames=4, height=8, width=9, text_length=13)
    q, k, v = random_qkv(grid.length, rng)
    exact = F.scaled_dot_product_attention(q, k, v)
    config = PyramidConfig(q_tile=32, kv_tile=16, density=1.0, search="top_down", beam=99)
    out, stats = sparse_attention(q, k, v, config, grid=(4, 8, 9), text_length=13)
    assert stats.density == pytest.approx(1.0)
    assert torch.allclose(out, exact, atol=1e-4)
