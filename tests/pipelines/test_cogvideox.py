"""CogVideoX of all generations and tasks: parity, text in front, fusing, bookkeeping, restore."""

import copy
import importlib.util
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sparse_runs import NO_DENSE, raises_in_call, same, small
from tiny_cogvideox import build, run

import fastdit
from fastdit.probe import AttentionProbe
from fastdit_pipelines.cogvideox import CogVideoXAdapter, project

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "cogvideox.py"


def layers(pipe):
    return [block.attn1 for block in pipe.transformer.transformer_blocks]


def processors(pipe):
    return [layer.processor for layer in layers(pipe)]


@pytest.fixture(scope="module")
def pipes():
    """One pipeline per generation, left as it was by every test."""
    return {model: build(model) for model in ("2b", "5b", "1.5")}


@pytest.mark.parametrize("model", ["2b", "5b", "1.5"])
def test_sparse_runs_differ_and_disable_leaves_the_very_same_pipeline(pipes, model):
    pipe = pipes[model]
    before, dense = processors(pipe), run(pipe, steps=2)
    attributes = set(vars(pipe.transformer))
    with fastdit.enable(pipe, small()) as session:
        assert not set(processors(pipe)) & set(before)
        sparse = run(pipe, steps=2)
        assert sparse.isfinite().all()
        assert (sparse - dense).abs().max() > 1e-4
        assert torch.equal(run(pipe, steps=2), sparse)
        assert session.stats.density() < 1
    assert same(processors(pipe), before)
    assert set(vars(pipe.transformer)) - attributes <= {"_diffusers_hook"}
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(run(pipe, steps=2), dense)


@pytest.mark.parametrize("model", ["2b", "1.5"])
def test_a_dense_decision_is_bit_identical(pipes, model):
    pipe = pipes[model]
    dense = run(pipe, steps=2)
    for config in (
        small(schedule=fastdit.Schedule(dense_steps=1.0)),
        small(schedule=fastdit.Schedule(dense_steps=0, dense_layers=(0, 1))),
        fastdit.AdaptiveConfig(min_tokens=10_000),
    ):
        with fastdit.enable(pipe, config) as session:
            assert torch.equal(run(pipe, steps=2), dense)
            assert session.stats.density() == 1.0


# Latent frames 3, 4 and 1; with two frames per token 2, 2 and 1, the odd ones padded by the pipeline.
@pytest.mark.parametrize(("size", "num_frames"), [((32, 48), 9), ((48, 80), 13), ((16, 16), 1)])
@pytest.mark.parametrize("model", ["2b", "5b", "1.5"])
def test_density_one_equals_dense_at_any_size(pipes, model, size, num_frames):
    pipe = pipes[model]
    dense = run(pipe, steps=2, size=size, num_frames=num_frames)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        ours = run(pipe, steps=2, size=size, num_frames=num_frames)
        frames = -(-dense.shape[1] // 2) if model == "1.5" else dense.shape[1]
        tokens = 16 + frames * (size[0] // 16) * (size[1] // 16)
        heads = pipe.transformer.config.num_attention_heads
        assert {r.dense_pairs for r in session.stats.records.values()} == {2 * heads * tokens**2}
    assert (ours - dense).abs().max() <= 1e-5 * dense.abs().max()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_projection_and_dense_attention_are_bit_identical_to_stock(fused, rotary, rng):
    pipe = build("5b", num_layers=1)
    if fused:
        pipe.transformer.fuse_qkv_projections()
    attn = layers(pipe)[0]
    video, text = torch.randn(2, 18, 32, generator=rng), torch.randn(2, 16, 32, generator=rng)
    angles = torch.randn(18, 8, generator=rng).repeat_interleave(2, 1)
    turn = (angles.cos(), angles.sin()) if rotary else None
    with torch.no_grad():
        query, key, value = project(attn, torch.cat([text, video], 1), 16, turn, fused=fused)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        ours = attn.to_out[0](out.transpose(1, 2).flatten(2, 3))
        stock_video, stock_text = attn(video, text, image_rotary_emb=turn)
    assert torch.equal(ours[:, 16:], stock_video)
    assert torch.equal(ours[:, :16], stock_text)


@pytest.mark.parametrize("size", [(32, 48), (48, 80)])
def test_text_in_front_is_seen_by_all_and_sees_all(pipes, size):
    """Against attention with an explicit mask: own query tile and text for video rows, everything for text rows."""
    pipe = pipes["5b"]
    calls = []

    def compare(attn, args, kwargs, output):
        video, text = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        joint = torch.cat([text, video], 1)
        q, k, v = project(attn, joint, text.shape[1], kwargs["image_rotary_emb"], fused=False)
        tile = torch.cat([torch.full((text.shape[1],), -1), torch.arange(video.shape[1]) // 8])
        keep = (tile[:, None] == tile) | (tile[:, None] < 0) | (tile < 0)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=keep)
        expected = attn.to_out[0](out.transpose(1, 2).flatten(2, 3)).split((text.shape[1], video.shape[1]), 1)
        for ours, theirs in zip(output, reversed(expected), strict=True):
            assert (ours - theirs).abs().max() < 1e-5
        calls.append(int(keep.sum()))

    config = fastdit.StaticConfig(pattern="skip", order="raster", q_tile=8, kv_tile=4, min_tokens=0, schedule=NO_DENSE)
    with ExitStack() as hooks, fastdit.enable(pipe, config) as session:
        for layer in layers(pipe):
            hooks.callback(layer.register_forward_hook(compare, with_kwargs=True).remove)
        run(pipe, steps=2, size=size)
        kept = {int(r.kept_pairs.sum()) for r in session.stats.records.values()}
    assert len(calls) == 4
    assert kept == {2 * 2 * calls[0]}


@pytest.mark.parametrize("config", [fastdit.PyramidConfig, fastdit.CachedConfig])
def test_other_methods_run(pipes, config):
    settings = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0, "schedule": NO_DENSE}
    if config is fastdit.CachedConfig:
        settings = {"source": small(), "refresh_every": 2, "schedule": NO_DENSE, "min_tokens": 0}
    with fastdit.enable(pipes["2b"], config(**settings)) as session:
        assert run(pipes["2b"], steps=4).isfinite().all()
        assert session.stats.density() < 1
        if config is fastdit.CachedConfig:
            assert session.stats.mask_reuse()["built"] == session.stats.mask_reuse()["reused"] == 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections(when):
    pipe = build("5b")
    plain = processors(pipe)
    with fastdit.enable(pipe, small()):
        expected = run(pipe, steps=2)
    if when == "before":
        pipe.fuse_qkv_projections()
    fused = processors(pipe)
    session = fastdit.enable(pipe, small())
    if when == "after":
        pipe.fuse_qkv_projections()
    for layer in layers(pipe):
        layer.to_q.weight.data.fill_(float("nan"))  # what is fused must not be read any more
    ours = run(pipe, steps=2)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert len(session.stats.records) == 4
    assert all(processor.fused and processor.slot for processor in processors(pipe))
    fastdit.disable(pipe)
    names = {type(processor).__name__ for processor in processors(pipe)}
    assert names == {"FusedCogVideoXAttnProcessor2_0"}
    assert when == "after" or same(processors(pipe), fused)
    pipe.unfuse_qkv_projections()
    assert same(processors(pipe), plain)


def test_a_copy_of_an_enabled_model_is_fused_by_itself():
    pipe = build("5b", num_layers=1)
    original = processors(pipe)[0]
    with fastdit.enable(pipe, small()):
        ours = processors(pipe)[0]
        twin = copy.deepcopy(pipe.transformer)
        assert type(twin.transformer_blocks[0].attn1.processor) is type(original)
        twin.fuse_qkv_projections()
        assert type(twin.transformer_blocks[0].attn1.processor).__name__ == "FusedCogVideoXAttnProcessor2_0"
        assert processors(pipe)[0] is ours
        assert not hasattr(layers(pipe)[0], "to_qkv")
    assert processors(pipe)[0] is original


def test_unfusing_while_enabled():
    pipe = build("5b")
    plain = processors(pipe)
    pipe.transformer.fuse_qkv_projections()
    with fastdit.enable(pipe, small()) as session:
        pipe.transformer.unfuse_qkv_projections()
        for layer in layers(pipe):
            layer.to_qkv.weight.data.fill_(float("nan"))
        assert run(pipe, steps=2).isfinite().all()
        assert len(session.stats.records) == 4
    assert same(processors(pipe), plain)
    assert "fuse_qkv_projections" not in vars(pipe.transformer)


@pytest.mark.parametrize(("task", "model"), [("i2v", "5b"), ("i2v", "1.5"), ("v2v", "5b"), ("control", "2b")])
def test_other_tasks(task, model):
    pipe = build(model, task)
    settings = {"strength": 0.5} if task == "v2v" else {}
    dense = run(pipe, **settings)
    with fastdit.enable(pipe, small(density=1.0)):
        assert (run(pipe, **settings) - dense).abs().max() <= 1e-5 * dense.abs().max()
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=0.5, dense_layers=()))) as session:
        sparse = run(pipe, **settings)
        assert sparse.isfinite().all()
        assert not torch.equal(sparse, dense)
        # Half of the steps that are run, which is half of them all with strength 0.5.
        steps = 2 if task == "v2v" else 4
        assert {r.step for r in session.stats.records.values()} == set(range(steps))
        assert session.stats.dense_reasons() == {"dense_steps": 2 * steps // 2}


def test_the_condition_image_is_always_kept():
    transformer = build("5b", "i2v").transformer
    grid = CogVideoXAdapter().grid
    latents, text = torch.zeros(1, 3, 8, 4, 6), torch.zeros(1, 16, 64)
    image = grid(transformer, (latents, text), {"ofs": None})
    control = grid(transformer, (latents, text), {})
    still = grid(transformer, (latents[:, :1], text), {"ofs": None})
    assert (image.kept_frames, control.kept_frames, still.kept_frames) == (1, 0, 0)
    assert (image.frames, image.height, image.width, image.text_length) == (3, 2, 3, 16)


def test_batches_and_guidance_off(pipes):
    pipe = pipes["5b"]
    prompts = {"prompt": ["dance", "monkey"], "negative_prompt": ["still", "still"]}
    dense = run(pipe, steps=2, **prompts)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        assert (run(pipe, steps=2, **prompts) - dense).abs().max() <= 1e-5 * dense.abs().max()
        assert {r.dense_pairs for r in session.stats.records.values()} == {4 * 2 * 34**2}
        run(pipe, steps=2, guidance_scale=1.0)
        assert {r.dense_pairs for r in session.stats.records.values()} == {2 * 34**2}


def test_steps_branches_and_summary(pipes):
    config = small(schedule=fastdit.Schedule(dense_steps=0.25, dense_layers=(0,)))
    with fastdit.enable(pipes["2b"], config) as session:
        for _ in range(2):
            run(pipes["2b"])
            assert {(r.layer, r.step, r.branch) for r in session.stats.records.values()} == {
                (layer, step, "cond_uncond") for layer in range(2) for step in range(4)
            }
            assert session.stats.dense_reasons() == {"dense_steps": 2, "dense_layers": 3}
        assert "dense_layers" in session.summary()


def test_an_exception_inside_a_run_leaves_the_pipeline_usable(pipes):
    pipe = pipes["2b"]
    before, dense = processors(pipe), run(pipe)
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=2, dense_layers=()))) as session:
        clean = run(pipe)
        with raises_in_call(layers(pipe)[1].to_out[0], 3):
            run(pipe)
        assert torch.equal(run(pipe), clean)
        assert session.stats.dense_reasons() == {"dense_steps": 4}
    assert same(processors(pipe), before)
    assert torch.equal(run(pipe), dense)


def test_an_unknown_processor_is_refused_and_nothing_is_changed():
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb):
            return hidden_states, encoder_hidden_states

    pipe = build("2b")
    first, last = layers(pipe)
    before, last.processor = first.processor, Foreign()
    with pytest.raises(fastdit.UnsupportedModelError, match="Foreign is not known"):
        fastdit.enable(pipe, small())
    assert first.processor is before
    assert "fuse_qkv_projections" not in vars(pipe.transformer)


def test_an_attention_mask_is_refused(pipes):
    mask = {"attention_mask": torch.zeros(2, 1, 34)}
    with (
        fastdit.enable(pipes["2b"], small()),
        pytest.raises(fastdit.UnsupportedModelError, match="attention_mask"),
    ):
        run(pipes["2b"], steps=1, attention_kwargs=mask)


def test_the_probe_sees_the_video_behind_the_text(pipes):
    dense = run(pipes["5b"], steps=2)
    with AttentionProbe(pipes["5b"], [1], rows=4, block=4) as probe:
        assert torch.allclose(run(pipes["5b"], steps=2), dense, atol=1e-5)
    assert [(view.layer, view.step) for view in probe.views] == [(0, 1), (1, 1)]
    assert probe.views[0].grid.text_first
    assert probe.views[0].patch.shape == (2, 3, 2, 3)


def test_the_recipe_runs_offline_on_a_random_pipeline(monkeypatch, tmp_path, capsys):
    import diffusers

    spec = importlib.util.spec_from_file_location("recipe_cogvideox", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with pytest.raises(SystemExit) as leaving:
        recipe.main(["--help"])
    assert leaving.value.code == 0
    monkeypatch.setattr(diffusers.CogVideoXPipeline, "from_pretrained", lambda *_, **__: build("5b"))
    arguments = ["--device", "cpu", "--steps", "2", "--frames", "5", "--height", "16", "--width", "16"]
    recipe.main(["a monkey", *arguments, "--output", str(tmp_path / "out.mp4")])
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert "density over the whole run" in capsys.readouterr().out
