"""HunyuanVideo-1.5, text-to-video and image-to-video, on random pipelines."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import sparse_runs
import torch
from families import close
from largest_mask import LargestMask
from tiny_hunyuan_video15 import build, run
from torch.nn.functional import scaled_dot_product_attention

import fastdit
from fastdit_pipelines.hunyuan_attention import TextReader, finish, project

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "hunyuan_video15.py"
TASKS = ("t2v", "i2v")
# `a sign "hi"` and `bad`, one token a letter, and the end of the template; of the first also two letters of glyphs.
PROMPT_TOKENS, NEGATIVE_TOKENS = 11 + 33, 3 + 33
small = partial(sparse_runs.small, density=0.3)


@pytest.fixture(scope="module")
def pipes():
    """One pipeline of each task; every test leaves it as it was."""
    return {task: build(task=task) for task in TASKS}


def processors(pipe):
    return dict(pipe.transformer.attn_processors)


@pytest.mark.parametrize("task", TASKS)
def test_sparse_runs_differ_repeat_and_leave_the_very_same_pipeline(pipes, task):
    pipe = pipes[task]
    before, dense = processors(pipe), run(pipe, steps=2)
    with fastdit.enable(pipe, small(density=0.1)) as session:
        sparse = run(pipe, steps=2)
        assert sparse.isfinite().all()
        assert not torch.allclose(sparse, dense, rtol=1e-3)
        assert torch.equal(run(pipe, steps=2), sparse)
        assert session.stats.density() < 0.95
    after = processors(pipe)
    assert all(after[name] is processor for name, processor in before.items())
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(run(pipe, steps=2), dense)


@pytest.mark.parametrize("task", TASKS)
def test_all_tiles_kept_is_dense_attention(pipes, task):
    dense = run(pipes[task], steps=1)
    with fastdit.enable(pipes[task], small(density=1.0)):
        assert close(run(pipes[task], steps=1), dense)


@pytest.mark.parametrize("size", [(12, 20, 7), (16, 24, 1), (20, 12, 9)])
def test_odd_grids(pipes, size):
    arguments = dict(zip(("height", "width", "num_frames"), size, strict=True))
    dense = run(pipes["t2v"], steps=1, **arguments)
    with fastdit.enable(pipes["t2v"], small(density=1.0)):
        assert close(run(pipes["t2v"], steps=1, **arguments), dense)


def test_a_dense_decision_is_bit_identical(pipes):
    dense = run(pipes["t2v"], steps=2)
    for config in (small(schedule=fastdit.Schedule(dense_steps=1.0)), fastdit.AdaptiveConfig(min_tokens=10_000)):
        with fastdit.enable(pipes["t2v"], config) as session:
            assert torch.equal(run(pipes["t2v"], steps=2), dense)
            assert session.stats.density() == 1.0


def test_the_text_refiner_is_left_alone(pipes):
    with fastdit.enable(pipes["t2v"], small()):
        ours = {name for name, processor in processors(pipes["t2v"]).items() if hasattr(processor, "slot")}
    assert ours == {f"transformer_blocks.{i}.attn.processor" for i in (0, 1)}
    assert len(processors(pipes["t2v"])) == 3


def test_one_layer_equals_stock_on_all_tokens(pipes, rng):
    attn = pipes["t2v"].transformer.transformer_blocks[0].attn
    video, text = torch.randn(1, 72, 16, generator=rng), torch.randn(1, 24, 16, generator=rng)
    rotary = pipes["t2v"].transformer.rope(torch.zeros(1, 9, 3, 4, 6))
    mask = (torch.arange(24) < 13).view(1, 24)
    with torch.no_grad():
        stock = attn(hidden_states=video, encoder_hidden_states=text, attention_mask=mask, image_rotary_emb=rotary)
        query, key, value = (x.transpose(1, 2) for x in project(attn, video, text[:, :13], rotary))
        out = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        ours = finish(attn, out, 72, 24)
    assert close(ours[0], stock[0])
    # Stock gives masked rows an attention of zero, and so do we.
    assert close(ours[1], stock[1])


def test_steps_and_branches_of_the_guider(pipes, grids):
    with fastdit.enable(pipes["t2v"], small()) as session:
        run(pipes["t2v"], steps=3)
        branches = {(branch, step) for branch in ("pred_cond", "pred_uncond") for step in range(3)}
        assert {(r.branch, r.step) for r in session.stats.records.values()} == branches
    assert len(grids) == 6


def test_guidance_that_stops_part_way_and_guidance_off():
    pipe = build(guidance_stop=0.5)
    with fastdit.enable(pipe, small()) as session:
        assert run(pipe).isfinite().all()
    guided = {("pred_cond", step) for step in range(4)} | {("pred_uncond", step) for step in range(2)}
    assert {(r.branch, r.step) for r in session.stats.records.values()} == guided
    pipe = build(guidance_scale=1.0)
    with fastdit.enable(pipe, small()) as session:
        run(pipe, steps=2)
        assert {r.branch for r in session.stats.records.values()} == {"pred_cond"}


def test_text_is_cropped_to_what_is_valid(pipes, grids, monkeypatch):
    reads = []
    begin = TextReader.begin

    def note(text, lengths, padded):
        reads.append(lengths)
        return begin(text, lengths, padded)

    monkeypatch.setattr(TextReader, "begin", note)
    masks = []
    handle = (
        pipes["t2v"]
        .transformer.transformer_blocks[0]
        .attn.register_forward_pre_hook(
            lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    )
    with fastdit.enable(pipes["t2v"], small()):
        run(pipes["t2v"], steps=2)
    handle.remove()
    assert len(reads) == 4
    assert [grid.text_length for grid in grids] == [int(mask.sum()) for mask in masks]
    assert [grid.text_length for grid in grids][1::2] == [NEGATIVE_TOKENS] * 2
    assert grids[0].text_length > PROMPT_TOKENS
    assert masks[0].shape[1] == 64


def test_image_tokens_are_valid_text_in_image_to_video(pipes, grids):
    with fastdit.enable(pipes["i2v"], small()):
        run(pipes["i2v"], steps=1)
    assert grids[1].text_length == NEGATIVE_TOKENS + 4
    assert {(grid.kept_frames, grid.dense_frames) for grid in grids} == {(1, 0)}


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_prompts_of_unequal_length_in_a_batch(pipes, density):
    pipe, prompts = pipes["t2v"], ['a sign "hi"', "bad"]

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    def batch_of_two():
        return run(pipe, steps=1, prompt=prompts, negative_prompt=["", "no"], generator=noise())

    dense = batch_of_two()
    with fastdit.enable(pipe, small(density=density)):
        batch = batch_of_two()
        alone = [
            run(pipe, steps=1, prompt=prompt, negative_prompt=negative, generator=generator)
            for prompt, negative, generator in zip(prompts, ["", "no"], noise(), strict=True)
        ]
    assert close(batch, torch.cat(alone))
    assert close(batch, dense) == (density == 1.0)


def test_no_mask_of_token_pairs_is_made(pipes):
    tokens = 17 * 24
    with LargestMask() as stock:
        run(pipes["t2v"], steps=1, num_frames=33)
    assert stock.elements == (tokens + 64) ** 2
    with fastdit.enable(pipes["t2v"], small()), LargestMask() as sparse:
        run(pipes["t2v"], steps=1, num_frames=33)
    # What is left are the refiner's masks and those of tiles.
    assert sparse.elements < tokens**2 / 8


def test_unknown_processors_are_refused(pipes):
    class HunyuanVideoAttnProcessor2_0:  # of the other model
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb):
            return hidden_states

    last = pipes["t2v"].transformer.transformer_blocks[-1].attn
    stock, last.processor = last.processor, HunyuanVideoAttnProcessor2_0()
    with pytest.raises(fastdit.UnsupportedModelError, match="accepted are HunyuanVideo15AttnProcessor2_0"):
        fastdit.enable(pipes["t2v"], small())
    last.processor = stock


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_runs_offline_on_a_random_pipeline(task, monkeypatch, tmp_path, capsys):
    import diffusers
    from PIL import Image

    spec = importlib.util.spec_from_file_location("recipe_hunyuan_video15", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    name = {"t2v": "HunyuanVideo15Pipeline", "i2v": "HunyuanVideo15ImageToVideoPipeline"}[task]
    monkeypatch.setattr(getattr(diffusers, name), "from_pretrained", lambda *_, **__: build(task=task))
    arguments = ["--device", "cpu", "--steps", "2", "--frames", "5", "--guidance", "3"]
    if task == "i2v":
        Image.new("RGB", (16, 16), "red").save(tmp_path / "first.png")
        arguments += ["--image", str(tmp_path / "first.png")]
    recipe.main(["a monkey", *arguments, "--output", str(tmp_path / "out.mp4")])
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert "density over the whole run" in capsys.readouterr().out
