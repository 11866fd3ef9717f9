"""Mochi: parity, valid text of each batch entry, last layer without text, bookkeeping, restore."""

import importlib.util
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sparse_runs import NO_DENSE, raises_in_call, same, small
from tiny_mochi import build, run

import fastdit
from fastdit.capture import AttentionCapture
from fastdit_pipelines.mochi import project, read_text_mask

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "mochi.py"
# The rotary angles are taken under an autocast to fp32, which a CPU does not know.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")
# Valid tokens of the empty negative prompt (its end sign) and of "dance monkey".
EMPTY, PROMPT = 1, 14


def layers(pipe):
    return [block.attn1 for block in pipe.transformer.transformer_blocks]


def processors(pipe):
    return [layer.processor for layer in layers(pipe)]


@pytest.fixture(scope="module")
def pipe():
    """Left as it was by every test."""
    return build()


def test_sparse_runs_differ_and_disable_leaves_the_very_same_pipeline(pipe):
    before, dense = processors(pipe), run(pipe, steps=2)
    with fastdit.enable(pipe, small()) as session:
        assert not set(processors(pipe)) & set(before)
        sparse = run(pipe, steps=2)
        assert sparse.isfinite().all()
        assert (sparse - dense).abs().max() > 1e-4
        assert torch.equal(run(pipe, steps=2), sparse)
        assert session.stats.density() < 1
    assert same(processors(pipe), before)
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(run(pipe, steps=2), dense)


def test_a_dense_decision_is_bit_identical(pipe):
    dense = run(pipe, steps=2)
    for config in (
        small(schedule=fastdit.Schedule(dense_steps=1.0)),
        small(schedule=fastdit.Schedule(dense_steps=0, dense_layers=(0, 1))),
        fastdit.AdaptiveConfig(min_tokens=10_000),
    ):
        with fastdit.enable(pipe, config) as session:
            assert torch.equal(run(pipe, steps=2), dense)
            assert session.stats.density() == 1.0
            # Each half of the batch has its own text.
            pairs = 2 * ((24 + EMPTY) ** 2 + (24 + PROMPT) ** 2)
            assert {r.dense_pairs for r in session.stats.records.values()} == {pairs}


@pytest.mark.parametrize(("size", "num_frames"), [((32, 48), 19), ((48, 80), 13), ((16, 16), 7)])
def test_density_one_equals_dense_at_any_size(pipe, size, num_frames):
    dense = run(pipe, steps=2, size=size, num_frames=num_frames)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        ours = run(pipe, steps=2, size=size, num_frames=num_frames)
        assert session.stats.density() == 1.0
    assert (ours - dense).abs().max() <= 1e-5 * dense.abs().max()


def test_projection_and_dense_attention_are_bit_identical_to_stock(pipe, rng):
    attn = layers(pipe)[0]
    video, text = torch.randn(1, 18, 16, generator=rng), torch.randn(1, 16, 16, generator=rng)
    angles = torch.randn(18, 2, 4, generator=rng)
    rotary = (angles.cos(), angles.sin())
    with torch.no_grad():
        query, key, value = project(attn, video, text, rotary)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        out = out.transpose(1, 2).flatten(2, 3)
        stock = attn(video, text, torch.ones(1, 16, dtype=torch.bool), image_rotary_emb=rotary)
        assert torch.equal(attn.to_out[0](out[:, :18]), stock[0])
        assert torch.equal(attn.to_add_out(out[:, 18:]), stock[1])


def test_valid_text_is_seen_by_all_and_sees_all(pipe):
    """Against attention with an explicit mask for each batch entry: own query tile and valid text for video rows."""
    lengths = set()

    def compare(attn, args, kwargs, output):
        video, text, valid = kwargs["hidden_states"], kwargs["encoder_hidden_states"], kwargs["attention_mask"]
        q, k, v = (x.transpose(1, 2) for x in project(attn, video, text, kwargs["image_rotary_emb"]))
        length = video.shape[1]
        tile = torch.cat([torch.arange(length) // 8, torch.full((text.shape[1],), -1)])
        keep = ((tile[:, None] == tile) | (tile[:, None] < 0) | (tile < 0)).repeat(len(video), 1, 1, 1)
        keep[:, :, :, length:] &= valid[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2).flatten(2, 3)
        out[:, length:] *= valid[..., None]
        text_out = attn.to_add_out(out[:, length:]) if hasattr(attn, "to_add_out") else out[:, length:]
        assert (output[0] - attn.to_out[0](out[:, :length])).abs().max() < 1e-5
        assert (output[1] - text_out).abs().max() < 1e-5
        lengths.add(tuple(valid.sum(1).tolist()))

    config = fastdit.StaticConfig(pattern="skip", order="raster", q_tile=8, kv_tile=4, min_tokens=0, schedule=NO_DENSE)
    with ExitStack() as hooks, fastdit.enable(pipe, config) as session:
        for layer in layers(pipe):
            hooks.callback(layer.register_forward_hook(compare, with_kwargs=True).remove)
        run(pipe, steps=2)
        # 24 video tokens in three tiles of 8.
        kept = sum(3 * 8 * (8 + n) + n * (24 + n) for n in (EMPTY, PROMPT))
        assert {int(r.kept_pairs.sum()) for r in session.stats.records.values()} == {2 * kept}
    assert lengths == {(EMPTY, PROMPT)}


def test_no_valid_text_at_all():
    pipe = build(force_zeros_for_empty_prompt=True)
    dense = run(pipe, steps=2)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        assert (run(pipe, steps=2) - dense).abs().max() <= 1e-5 * dense.abs().max()
        assert {r.dense_pairs for r in session.stats.records.values()} == {2 * (24**2 + (24 + PROMPT) ** 2)}


def test_valid_text_anywhere_in_the_mask(pipe, rng):
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, [0, 3, 4, 9]] = False
    valid = read_text_mask(mask)
    assert valid.lengths == (12,)
    assert valid.order.tolist() == [[1, 2, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 0, 3, 4, 9]]
    assert read_text_mask(mask.sort(descending=True).values).order is None
    inputs = {
        "hidden_states": torch.randn(1, 12, 3, 4, 6, generator=rng),
        "encoder_hidden_states": torch.randn(1, 16, 64, generator=rng),
        "timestep": torch.tensor([500.0]),
        "encoder_attention_mask": mask,
        "return_dict": False,
    }
    with torch.no_grad():
        dense = pipe.transformer(**inputs)[0]
        with fastdit.enable(pipe.transformer, small(density=1.0)):
            assert (pipe.transformer(**inputs)[0] - dense).abs().max() <= 1e-5 * dense.abs().max()


def test_batches_and_guidance_off(pipe):
    prompts = {"prompt": ["dance", "a monkey"], "negative_prompt": ["still", ""]}
    dense = run(pipe, steps=2, **prompts)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        assert (run(pipe, steps=2, **prompts) - dense).abs().max() <= 1e-5 * dense.abs().max()
        twice = run(pipe, steps=2, num_videos_per_prompt=2)
        assert twice.shape[0] == 2
        run(pipe, steps=2, guidance_scale=1.0)
        assert {r.dense_pairs for r in session.stats.records.values()} == {2 * (24 + PROMPT) ** 2}
    with fastdit.enable(pipe, small()):
        assert run(pipe, steps=2, **prompts).isfinite().all()


@pytest.mark.parametrize("config", [fastdit.PyramidConfig, fastdit.CachedConfig])
def test_other_methods_run(pipe, config):
    settings = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0, "schedule": NO_DENSE}
    if config is fastdit.CachedConfig:
        settings = {"source": small(), "refresh_every": 2, "schedule": NO_DENSE, "min_tokens": 0}
    with fastdit.enable(pipe, config(**settings)) as session:
        assert run(pipe).isfinite().all()
        assert session.stats.density() < 1
        if config is fastdit.CachedConfig:
            # Both text lengths of a call keep a mask; a call is one record.
            assert session.stats.mask_reuse()["built"] == session.stats.mask_reuse()["reused"] == 4


def test_steps_branches_and_summary(pipe):
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=0.25, dense_layers=(0,)))) as session:
        for _ in range(2):
            run(pipe)
            assert {(r.layer, r.step, r.branch) for r in session.stats.records.values()} == {
                (layer, step, "cond_uncond") for layer in range(2) for step in range(4)
            }
            assert session.stats.dense_reasons() == {"dense_steps": 2, "dense_layers": 3}
        assert "dense_layers" in session.summary()


def test_an_exception_inside_a_run_leaves_the_pipeline_usable(pipe):
    before, dense = processors(pipe), run(pipe)
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=2, dense_layers=()))) as session:
        clean = run(pipe)
        with raises_in_call(layers(pipe)[1].to_out[0], 3):
            run(pipe)
        assert torch.equal(run(pipe), clean)
        assert session.stats.dense_reasons() == {"dense_steps": 4}
    assert same(processors(pipe), before)
    assert torch.equal(run(pipe), dense)


def test_an_unknown_processor_is_refused_and_nothing_is_changed(pipe):
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb):
            return hidden_states, encoder_hidden_states

    first, last = layers(pipe)
    kept, last.processor = last.processor, Foreign()
    before = first.processor
    with pytest.raises(fastdit.UnsupportedModelError, match="Foreign is not known"):
        fastdit.enable(pipe, small())
    assert first.processor is before
    last.processor = kept


def test_captured_calls_have_valid_text_only(pipe):
    dense = run(pipe, steps=2)
    with AttentionCapture(pipe, [1]) as capture:
        assert torch.allclose(run(pipe, steps=2), dense, atol=1e-5)
    assert [(call.layer, call.step) for call in capture.calls] == [(0, 1), (1, 1)]
    assert {call.grid.text_length for call in capture.calls} == {EMPTY}
    assert {tuple(call.query.shape) for call in capture.calls} == {(2, 24 + EMPTY, 8)}


def test_the_recipe_runs_offline_on_a_random_pipeline(monkeypatch, tmp_path, capsys):
    import diffusers

    spec = importlib.util.spec_from_file_location("recipe_mochi", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with pytest.raises(SystemExit) as leaving:
        recipe.main(["--help"])
    assert leaving.value.code == 0
    monkeypatch.setattr(diffusers.MochiPipeline, "from_pretrained", lambda *_, **__: build())
    arguments = ["--device", "cpu", "--steps", "2", "--frames", "7", "--height", "16", "--width", "16"]
    recipe.main(["a monkey", *arguments, "--output", str(tmp_path / "out.mp4")])
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert "density over the whole run" in capsys.readouterr().out
