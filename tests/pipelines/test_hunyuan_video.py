"""HunyuanVideo, text-to-video and both kinds of image-to-video, on random pipelines."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import sparse_runs
import torch
from families import close
from largest_mask import LargestMask
from tiny_hunyuan_video import build, run
from torch.nn.functional import scaled_dot_product_attention

import fastdit
from fastdit.adapters import find_adapter
from fastdit.capture import AttentionCapture
from fastdit_pipelines.hunyuan_attention import TextReader, finish, project

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "hunyuan_video.py"
CONDITIONS = (None, "latent_concat", "token_replace")
TRUE_GUIDANCE = {"negative_prompt": "bad", "true_cfg_scale": 4.0, "guidance_scale": 1.0}
small = partial(sparse_runs.small, density=0.3)


@pytest.fixture(scope="module")
def pipes():
    """One pipeline of each kind; every test leaves it as it was."""
    return {condition: build(image_condition_type=condition) for condition in CONDITIONS}


def processors(pipe):
    return dict(pipe.transformer.attn_processors)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_sparse_runs_differ_repeat_and_leave_the_very_same_pipeline(pipes, condition):
    pipe = pipes[condition]
    before, dense = processors(pipe), run(pipe, steps=2)
    with fastdit.enable(pipe, small()) as session:
        sparse = run(pipe, steps=2)
        assert sparse.isfinite().all()
        assert not torch.allclose(sparse, dense, rtol=1e-3)
        assert torch.equal(run(pipe, steps=2), sparse)
        assert session.stats.density() < 0.8
        assert len(session.stats.records) == 2 * 4
    after = processors(pipe)
    assert all(after[name] is processor for name, processor in before.items())
    assert "forward" not in vars(pipe.transformer)
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(run(pipe, steps=2), dense)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_all_tiles_kept_is_dense_attention(pipes, condition):
    pipe = pipes[condition]
    dense = run(pipe, steps=1, **TRUE_GUIDANCE)
    with fastdit.enable(pipe, small(density=1.0)):
        assert close(run(pipe, steps=1, **TRUE_GUIDANCE), dense)


@pytest.mark.parametrize("size", [(16, 16, 5), (48, 80, 1), (32, 16, 17)])
def test_odd_grids(pipes, size):
    arguments = dict(zip(("height", "width", "num_frames"), size, strict=True))
    dense = run(pipes[None], steps=1, **arguments)
    with fastdit.enable(pipes[None], small(density=1.0)):
        assert close(run(pipes[None], steps=1, **arguments), dense)


def test_a_dense_decision_is_bit_identical(pipes):
    dense = run(pipes[None], steps=2)
    for config in (
        small(schedule=fastdit.Schedule(dense_steps=1.0)),
        small(schedule=fastdit.Schedule(dense_steps=0, dense_layers=(0, 1, 2, 3))),
        fastdit.AdaptiveConfig(min_tokens=10_000),
    ):
        with fastdit.enable(pipes[None], config) as session:
            assert torch.equal(run(pipes[None], steps=2), dense)
            assert session.stats.density() == 1.0


def test_heads_that_stay_dense(pipes):
    dense = run(pipes[None], steps=1)
    mixed = fastdit.MixedConfig(heads={0: "dense"}, default=small(density=1.0))
    with fastdit.enable(pipes[None], mixed):
        assert close(run(pipes[None], steps=1), dense)


def test_the_text_refiner_is_left_alone(pipes):
    with fastdit.enable(pipes[None], small()):
        ours = {name for name, processor in processors(pipes[None]).items() if hasattr(processor, "slot")}
    blocks = {
        f"{name}.{i}.attn.processor" for name in ("transformer_blocks", "single_transformer_blocks") for i in (0, 1)
    }
    assert ours == blocks
    assert len(processors(pipes[None])) == len(blocks) + 1


@pytest.mark.parametrize("name", ["transformer_blocks", "single_transformer_blocks"])
def test_one_layer_equals_stock_on_valid_tokens(pipes, name, rng):
    attn = getattr(pipes[None].transformer, name)[0].attn
    video, text = torch.randn(1, 72, 20, generator=rng), torch.randn(1, 24, 20, generator=rng)
    rotary = pipes[None].transformer.rope(torch.zeros(1, 4, 3, 4, 6))
    mask = (torch.arange(96) < 72 + 13).view(1, 1, 1, 96)
    with torch.no_grad():
        stock = attn(hidden_states=video, encoder_hidden_states=text, attention_mask=mask, image_rotary_emb=rotary)
        query, key, value = (x.transpose(1, 2) for x in project(attn, video, text[:, :13], rotary))
        out = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        ours = finish(attn, out, 72, 24)
    assert ours[1].shape == stock[1].shape
    assert close(ours[0], stock[0])
    assert close(ours[1][:, :13], stock[1][:, :13])


def test_embedded_and_true_guidance(pipes):
    with fastdit.enable(pipes[None], small()) as session:
        run(pipes[None], steps=3)
        assert {(r.branch, r.step) for r in session.stats.records.values()} == {("cond", step) for step in range(3)}
        run(pipes[None], steps=3, **TRUE_GUIDANCE)
        branches = {(branch, step) for branch in ("cond", "uncond") for step in range(3)}
        assert {(r.branch, r.step) for r in session.stats.records.values()} == branches


def test_image_to_video_names_no_branches(pipes):
    pipe = pipes["token_replace"]
    with fastdit.enable(pipe, small()) as session:
        run(pipe, steps=2, **TRUE_GUIDANCE)
        branches = {(branch, step) for branch in ("call0", "call1") for step in range(2)}
        assert {(r.branch, r.step) for r in session.stats.records.values()} == branches


def test_text_is_cropped_to_what_is_valid(pipes, grids, monkeypatch):
    reads = []
    begin = TextReader.begin

    def note(text, lengths, padded):
        reads.append(lengths.tolist())
        return begin(text, lengths, padded)

    monkeypatch.setattr(TextReader, "begin", note)
    with fastdit.enable(pipes[None], small()) as session:
        run(pipes[None], steps=2, **TRUE_GUIDANCE)
    # "dance monkey" and "bad", one token a letter, and the beginning.
    assert [grid.text_length for grid in grids] == [13, 4] * 2
    assert reads == [[13], [4]] * 2
    pairs = {(r.branch, r.dense_pairs) for r in session.stats.records.values()}
    assert pairs == {("cond", 2 * 85**2), ("uncond", 2 * 76**2)}


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_prompts_of_unequal_length_in_a_batch(pipes, density):
    prompts = ["dance monkey", "bad"]

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    dense = run(pipes[None], steps=2, prompt=prompts, generator=noise())
    with fastdit.enable(pipes[None], small(density=density)) as session:
        batch = run(pipes[None], steps=2, prompt=prompts, generator=noise())
        assert {r.dense_pairs for r in session.stats.records.values()} == {2 * (85**2 + 76**2)}
        alone = [
            run(pipes[None], steps=2, prompt=prompt, generator=generator)
            for prompt, generator in zip(prompts, noise(), strict=True)
        ]
    assert close(batch, torch.cat(alone))
    assert close(batch, dense) == (density == 1.0)


def test_several_videos_of_a_prompt(pipes):
    with fastdit.enable(pipes[None], small()):
        batch = run(pipes[None], steps=1, num_videos_per_prompt=2)
    assert batch.shape[0] == 2
    assert batch.isfinite().all()


def test_frames_that_stay(pipes, grids):
    for condition, frames in ((None, (0, 0)), ("latent_concat", (1, 0)), ("token_replace", (1, 1))):
        grids.clear()
        with fastdit.enable(pipes[condition], small()):
            run(pipes[condition], steps=1)
        assert [(grid.kept_frames, grid.dense_frames) for grid in grids] == [frames]


def test_the_condition_tokens_get_dense_attention(pipes):
    pipe, outputs = pipes["token_replace"], []
    layer = pipe.transformer.transformer_blocks[0].attn
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    run(pipe, steps=1)
    with fastdit.enable(
        pipe, fastdit.StaticConfig(pattern="skip", q_tile=8, kv_tile=4, min_tokens=0, schedule=sparse_runs.NO_DENSE)
    ):
        run(pipe, steps=1)
    handle.remove()
    dense, sparse = outputs
    assert close(sparse[:, :24], dense[:, :24])
    assert not torch.allclose(sparse[:, 24:], dense[:, 24:], atol=1e-3)


def test_captured_calls_hold_video_and_valid_text(pipes):
    with AttentionCapture(pipes["token_replace"], steps=(0,), layers=(0, 3)) as capture:
        run(pipes["token_replace"], steps=1)
    assert [call.layer for call in capture.calls] == [0, 3]
    assert {tuple(call.query.shape) for call in capture.calls} == {(2, 72 + 13, 10)}
    assert capture.calls[0].grid.dense_frames == 1


def test_no_mask_of_token_pairs_is_made(pipes):
    with fastdit.enable(pipes[None], small()), LargestMask() as seen:
        run(pipes[None], steps=1, num_frames=33)
    assert 0 < seen.elements < (9 * 24) ** 2 / 8


def test_framepack_is_refused():
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    with pytest.raises(fastdit.UnsupportedModelError, match="FramepackTransformer3DModel is not supported"):
        find_adapter(HunyuanVideoFramepackTransformer3DModel.__new__(HunyuanVideoFramepackTransformer3DModel))


def test_a_layer_called_on_its_own_is_stock(pipes, rng):
    attn = pipes[None].transformer.transformer_blocks[0].attn
    hidden = {
        "hidden_states": torch.randn(1, 8, 20, generator=rng),
        "encoder_hidden_states": torch.randn(1, 4, 20, generator=rng),
    }
    with torch.no_grad():
        stock = attn(**hidden)
        with fastdit.enable(pipes[None], small()):
            assert torch.equal(attn(**hidden)[0], stock[0])


def test_unknown_processors_are_refused(pipes):
    class Foreign:
        def __call__(self, attn, hidden_states):
            return hidden_states

    transformer = pipes[None].transformer
    first, last = transformer.transformer_blocks[0].attn, transformer.single_transformer_blocks[-1].attn
    before, stock = first.processor, last.processor
    last.processor = Foreign()
    with pytest.raises(fastdit.UnsupportedModelError, match="Foreign is not known: accepted are HunyuanVideoAttn"):
        fastdit.enable(pipes[None], small())
    assert first.processor is before
    last.processor = stock


def test_context_parallelism_is_refused(pipes):
    with fastdit.enable(pipes[None], small()):
        pipes[None].transformer.transformer_blocks[0].attn.processor._parallel_config = object()
        with pytest.raises(fastdit.UnsupportedModelError, match="context parallelism"):
            run(pipes[None], steps=1)
        pipes[None].transformer.transformer_blocks[0].attn.processor._parallel_config = None


def test_the_recipe_runs_offline_on_a_random_pipeline(monkeypatch, tmp_path, capsys):
    import diffusers

    spec = importlib.util.spec_from_file_location("recipe_hunyuan_video", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(diffusers.HunyuanVideoTransformer3DModel, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(diffusers.HunyuanVideoPipeline, "from_pretrained", lambda *_, **__: build())
    arguments = ["--device", "cpu", "--steps", "2", "--frames", "5", "--height", "16", "--width", "32"]
    recipe.main(["a monkey", *arguments, "--output", str(tmp_path / "out.mp4")])
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert "density over the whole run" in capsys.readouterr().out
