from functools import partial

import pytest
import torch

from fastdit import ConfigError, VideoGrid
from fastdit.config import METHODS
from fastdit.recall import recall_given_lse
from fastdit_eval.attention_heads import AttentionHeads, make_heads
from fastdit_eval.selection_flops import matmul_flops
from fastdit_eval.selector_baselines import BASELINES
from fastdit_eval.selector_bench import bisect_knob, mean_errors, measure, run_selector_bench
from fastdit_eval.selector_methods import VARIANTS, method_selectors
from fastdit_eval.selector_task import Answer, Selector, SelectorTask
from fastdit_kernels import (
    BlockMask,
    TileLayout,
    block_mass,
    block_sparse_attention,
    gather_tokens,
    sampled_mass,
    tile_scores,
)

GRID = VideoGrid(frames=4, height=7, width=9)  # 252 tokens: ragged tiles
BY_NAME = {selector.name: selector for selector in [*BASELINES, *method_selectors()]}


@pytest.fixture(scope="module")
def task():
    heads = make_heads("mixed", GRID, 16, (0, 1))
    return SelectorTask(heads, 32, 16)


def probabilities(task):
    return (task.heads.query @ task.heads.key.mT / 4).softmax(-1)


def kept_tokens(answer, task):
    """Bool `[H, S, S]` in the model's order: which keys a query sees at any level, written out token by token."""
    mask, length = answer.mask, task.grid.length
    keep = mask.to_dense().expand(1, task.num_heads, -1, -1)[0]
    fine = torch.zeros(task.num_heads, length, length, dtype=torch.bool)
    for level in range(mask.kv_layout.num_levels):
        first = mask.kv_layout.level_offset(level)
        tiles = keep[..., first : first + mask.kv_layout.level_tiles(level)]
        columns = tiles.repeat_interleave(mask.kv_tile << level, -1)[..., :length]
        fine |= columns.repeat_interleave(mask.q_tile, 1)[:, :length]
    q_order = answer.q_order.expand(task.num_heads, -1)
    # The order of the keys is read off the keys themselves: no two are equal.
    kv_order = torch.cdist(answer.key[0], task.heads.key[0]).argmin(-1)
    out = torch.zeros_like(fine)
    for head in range(task.num_heads):
        out[head, q_order[head].unsqueeze(1), kv_order[head]] = fine[head]
    return out


@pytest.mark.parametrize("selector", BY_NAME.values(), ids=BY_NAME)
def test_figures_equal_those_written_out_token_by_token(task, selector):
    density = 0.95 if selector.name == "Radial" else 0.3
    case = measure(task, selector, density, 1)
    answer = selector.select(task, case["knob"], case["target"])
    answer.mask.validate()
    seen = kept_tokens(answer, task)
    exact = probabilities(task)
    assert case["recall"] == pytest.approx(float(torch.where(seen, exact[0], 0).sum(-1).mean()), abs=1e-4)
    assert case["coverage"] == pytest.approx(float(seen.float().mean()), abs=1e-5)
    if answer.mask.kv_layout.num_levels == 1:
        assert case["density"] == pytest.approx(float(seen.float().mean()), abs=1e-5)
        output = exact[0] @ task.heads.value[0]
        sparse = torch.where(seen, exact[0], 0)
        near = (sparse / sparse.sum(-1, keepdim=True).clamp(min=1e-30)) @ task.heads.value[0]
        rows = (near - output).norm(dim=-1) / output.norm(dim=-1)
        assert case["error"] == pytest.approx(float(rows.mean()), rel=1e-3)
        assert case["error_by_head"] == pytest.approx(rows.mean(-1).tolist(), rel=1e-3)
    assert case["reached"]
    assert case["density"] <= case["target"] * 1.05
    assert case["select_seconds"] > 0


@pytest.mark.parametrize("name", ["random", "oracle", "adaptive", "SpargeAttn top-k"])
def test_everything_kept_is_dense(task, name):
    case = measure(task, BY_NAME[name], 1.0, 1)
    assert case["error"] < 1e-5
    assert case["recall"] == pytest.approx(1.0, abs=1e-5)
    assert case["density"] == pytest.approx(1.0)


def test_the_oracle_has_the_highest_recall_of_all_that_read_tiles_in_full(task):
    # The oracle orders queries and keys alike; keys ordered alone can gather more.
    others = [name for name in BY_NAME if name == "PSA" or "pooled" in name or "auto" in name]
    recalls = {name: measure(task, selector, 0.2, 1) for name, selector in BY_NAME.items() if name not in others}
    best = recalls.pop("oracle")
    # A top-p choice moves density between rows, which can beat the best choice row by row.
    for name, case in recalls.items():
        if case["density"] <= case["target"] * (1 + 1e-6) and BY_NAME[name].knob is None:
            assert case["recall"] <= best["recall"] + 1e-5, name
    assert recalls["random"]["recall"] < best["recall"] - 0.1


def test_psa_equals_attention_over_pooled_blocks_written_out(task):
    answer = BY_NAME["PSA"].select(task, 2.0, 0.3)
    tokens = task.ordered("gilbert")
    out = block_sparse_attention(tokens.query, tokens.key, tokens.value, answer.mask)
    keep = answer.mask.to_dense()[0, 0, 3]
    layout = answer.mask.kv_layout
    q = tokens.query[0, 0, 96:128]
    keys, values, counts = [], [], []
    for level in range(4):
        tiles = keep[layout.level_offset(level) :][: layout.level_tiles(level)].nonzero().flatten().tolist()
        for tile in tiles:
            for row in range(layout.tile):
                first = (tile * layout.tile + row) << level
                members = slice(first, min(first + (1 << level), GRID.length))
                if members.stop > first:
                    keys.append(tokens.key[0, 0, members].mean(0))
                    values.append(tokens.value[0, 0, members].mean(0))
                    counts.append(members.stop - first)
    logits = q @ torch.stack(keys).T / 4 + torch.tensor(counts).float().log()
    torch.testing.assert_close(out[0, 0, 96:128], logits.softmax(-1) @ torch.stack(values), atol=1e-5, rtol=1e-4)
    assert len(set(counts)) > 2


def test_a_pure_pattern_is_recognised_by_svg1():
    for family, name in (("temporal", "space_major"), ("frame", "raster")):
        task = SelectorTask(make_heads(family, GRID, 32, (0,)), 32, 16)
        answer = BY_NAME["SVG1"].select(task, 0.3, 0.3)
        assert torch.equal(answer.q_order[0], task.ordered(name).order), family


def test_radial_keeps_neighbouring_frames_and_the_first_one():
    task = SelectorTask(make_heads("local", VideoGrid(frames=8, height=4, width=4), 16, (0,)), 16, 16)  # a frame a tile
    keep = BY_NAME["Radial"].select(task, -8.0, 0.3).mask.to_dense()[0, 0]
    frame = torch.arange(8)
    apart = (frame.unsqueeze(1) - frame).abs()
    assert keep[apart <= 1].all()
    assert keep[:, 0].all()
    assert not keep[(apart > 2) & (frame > 0)].all()


def test_bisection_stays_just_below_the_target(task):
    selector = BY_NAME["XAttention"]
    knob = bisect_knob(task, selector, 0.4)
    assert selector.select(task, knob, 0.4).mask.density() <= 0.4
    assert selector.select(task, knob + 0.02, 0.4).mask.density() > 0.4


def test_an_unreachable_density_is_said(task):
    case = measure(task, BY_NAME["Radial"], 0.05, 1)
    assert not case["reached"]
    assert case["density"] > 0.05 * 1.05
    other = {**case, "group": "b", "reached": True, "error": 0.25}
    assert mean_errors([other, {**other, "error": 0.75}])["Radial"] == {"0.05": 0.5}
    assert mean_errors([case, other])["Radial"] == {"0.05": None}


def test_every_registered_method_is_compared(monkeypatch):
    compared = {METHODS[name].__name__ for name in METHODS if VARIANTS.get(name, True)}
    assert compared <= {selector.source.split("(")[0] for selector in method_selectors()}

    class Other(METHODS["adaptive"]):
        method = "other"

    monkeypatch.setitem(METHODS, "other", Other)
    found = {selector.name: selector for selector in method_selectors()}
    assert found["other"].source == "Other()"
    small = SelectorTask(make_heads("local", GRID, 16, (0,)), 32, 16)
    assert found["other"].select(small, 0.5, 0.5).mask.density() == pytest.approx(0.5, abs=0.04)


def test_rows_without_entries_are_errors_of_one(task):
    def nothing(task, knob, density):
        empty = torch.zeros(1, 1, task.q_layout.num_tiles, task.kv_layout.num_tiles, dtype=torch.bool)
        tokens = task.ordered("raster")
        return Answer(task.mask(empty), tokens.order, tokens.key, tokens.value)

    case = measure(task, Selector(name="none", kind="baseline", source="", select=nothing), 0.1, 1)
    assert (case["error"], case["recall"], case["coverage"]) == (1.0, 0.0, 0.0)


def test_pooled_recall_counts_every_level(task):
    answer = BY_NAME["PSA"].select(task, 1.0, 0.15)
    tokens = task.ordered("gilbert")
    lse = gather_tokens(task.exact[1].unsqueeze(-1), tokens.order).squeeze(-1)
    got = recall_given_lse(tokens.query, tokens.key, lse, answer.mask).mean()
    expected = torch.where(kept_tokens(answer, task), probabilities(task)[0], 0).sum(-1).mean()
    assert float(got) == pytest.approx(float(expected), abs=1e-4)


def test_the_report_is_plain_data_and_names_its_settings():
    names = ("random", "adaptive")
    report = run_selector_bench(
        [partial(make_heads, name, GRID, 16, (0,)) for name in ("local", "frame")],
        densities=(0.2, 0.4),
        q_tile=32,
        kv_tile=16,
        repeats=1,
        selectors=[BY_NAME[name] for name in names],
    )
    assert len(report["cases"]) == 8
    assert report["groups"]["frame"]["shape"] == [1, 1, 252, 16]
    assert report["mean_error"]["adaptive"]["0.4"] < report["mean_error"]["random"]["0.4"]
    assert report["environment"]["torch"] == torch.__version__


def test_heads_with_text_are_refused():
    grid = VideoGrid(frames=2, height=2, width=2, text_length=4)
    x = torch.zeros(1, 1, 12, 8)
    with pytest.raises(ConfigError, match="4 text tokens"):
        SelectorTask(AttentionHeads(name="joint", grid=grid, query=x, key=x, value=x), 8, 8)


def test_flops_of_a_selection_are_those_of_its_matrix_products(rng):
    q, k = torch.randn(1, 2, 64, 16, generator=rng), torch.randn(1, 2, 96, 16, generator=rng)
    q_layout, kv_layout = TileLayout((64,), 16), TileLayout((96,), 8)
    assert matmul_flops(lambda: q @ k.mT) == 2 * 2 * 64 * 96 * 16
    assert matmul_flops(lambda: tile_scores(q, k, q_layout, kv_layout)) == 2 * 2 * 4 * 12 * 16
    assert matmul_flops(lambda: sampled_mass(q[:, :, :6], k, kv_layout, q_samples=2)) == 2 * 2 * 6 * 96 * 16
    lse = torch.zeros(1, 2, 64)
    assert matmul_flops(lambda: block_mass(q, k, lse, q_layout, kv_layout)) == 2 * 2 * 64 * 96 * 16
    keep = torch.zeros(1, 1, 4, 12, dtype=torch.bool)
    keep[..., :3] = True  # three tiles in each row of both heads
    mask = BlockMask.from_dense(keep, q_len=64, kv_len=96, q_tile=16, kv_tile=8)
    assert matmul_flops(lambda: block_sparse_attention(q, k, k, mask)) == 4 * 2 * 4 * 3 * 16 * 8 * 16
    assert matmul_flops(lambda: k.sort()) == 0
    dense = partial(torch.nn.functional.scaled_dot_product_attention, q, k, k)
    assert matmul_flops(dense) == 4 * 2 * 64 * 96 * 16
