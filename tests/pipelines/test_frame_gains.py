"""Gradients through whole pipelines: what they say of a head's error, and a pipeline left as it was."""

import dataclasses

import numpy as np
import pytest
import torch
from families import FAMILIES
from tests_support import build_tiny_wan

import fastdit
from fastdit.plan import ALL_SPARSE
from fastdit.search import frame_gains
from fastdit.search.followed_run import followed_frames
from fastdit.search.frame_gains import SEED, FrameGains
from fastdit.search.measure import ModeProbe
from fastdit_pipelines.loading import load_pipeline

CALL = {
    "guidance_scale": 1.0,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "max_sequence_length": 16,
}
MANY = fastdit.AdaptiveConfig(density=0.7, q_tile=8, kv_tile=4, min_tokens=0, schedule=ALL_SPARSE)


@pytest.fixture
def wan():
    pipe = build_tiny_wan(num_layers=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator():
    return torch.Generator("cpu").manual_seed(3)


def follow(pipe, **call):
    followed = FrameGains([1], ["many"])
    with ModeProbe(pipe, [1], {"dense": "dense", "many": MANY}, frame_gains=followed) as probe:
        frames = followed_frames(pipe, followed, prompt="a circle", generator=generator(), **{**CALL, **call})
    return frames, followed, probe


def plan_of_one_head(pipe, layer, head, grid):
    """Dense but for one head in the second of three steps."""
    from fastdit.adapters import find_adapter
    from fastdit.plan import Phase, Plan, PlanGrid
    from fastdit.plan_config import identify

    transformer = pipe.transformer
    identity = identify(transformer, find_adapter(transformer).sites(transformer))
    rows = [["dense"] * identity.num_heads for _ in range(identity.num_layers)]
    zeros = tuple(tuple(0.0 for _ in row) for row in rows)

    def phase(until, rows):
        return Phase(until=until, modes=(tuple(map(tuple, rows)),), density=(zeros,), error=(zeros,), refresh_every=1)

    sparse = [list(row) for row in rows]
    sparse[layer][head] = "many"
    return Plan(
        transformers=(identity,),
        grid=PlanGrid(**{name: grid[name] for name in ("frames", "height", "width", "text_length")}),
        num_inference_steps=3,
        modes={"dense": "dense", "many": MANY.to_dict()},
        phases=(phase(1 / 3, rows), phase(2 / 3, sparse), phase(1.0, rows)),
        predicted_error=0.0,
        predicted_cost=1.0,
    )


@pytest.mark.parametrize("head", [(0, 1), (5, 2)])
def test_products_say_how_the_frames_move(head, monkeypatch):
    """All tokens in one block: the square of what noise times the frames of a run with that head sparse moves by."""
    monkeypatch.setattr(frame_gains, "BLOCK", (100, 100, 100))
    # Trained: decoders with random weights answer to small errors in steps.
    pipe = load_pipeline("tiny")
    pipe.set_progress_bar_config(disable=True)
    call = {"num_frames": 9, "height": 48, "width": 48}
    dense, followed, probe = follow(pipe, **call)
    grid = dataclasses.asdict(probe.grid)
    plan = plan_of_one_head(pipe, *head, grid)
    with fastdit.enable(pipe, plan):
        sparse = pipe(prompt="a circle", generator=generator(), output_type="np", **{**CALL, **call}).frames[0]
    noise = torch.randn((1, *np.moveaxis(dense, 3, 1).shape), generator=torch.Generator("cpu").manual_seed(SEED))
    moved = float((noise[0].double() * torch.from_numpy(np.moveaxis(sparse - dense, 3, 1)).double()).sum())
    assert followed.squares[0, head[0], 1][0, head[1]] ** 0.5 == pytest.approx(abs(moved), rel=0.25)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_run_that_is_followed_has_the_frames_of_any_other_and_leaves_nothing_behind(wan, scale):
    plain = wan(prompt="a circle", generator=generator(), output_type="np", **{**CALL, "guidance_scale": scale})
    asked = [weight.requires_grad for weight in wan.transformer.parameters()]
    frames, followed, probe = follow(wan, guidance_scale=scale)
    assert np.abs(frames - plain.frames[0]).max() < 1e-4
    assert set(followed.squares) == {(0, layer, 1) for layer in range(2)} == set(probe.errors)
    assert all((squares > 0).all() for squares in followed.squares.values())
    assert [weight.requires_grad for weight in wan.transformer.parameters()] == asked
    assert all(weight.grad is None for weight in wan.transformer.parameters())
    assert "forward" not in wan.transformer.__dict__
    assert not hasattr(wan.transformer.blocks[0].attn1.processor, "slot")


def test_blocks_computed_a_third_time_give_the_same(wan):
    """The transformer's own gradient checkpointing, which large models take."""
    frames, whole, _ = follow(wan)
    wan.transformer.enable_gradient_checkpointing()
    again, blocks, _ = follow(wan)
    assert np.array_equal(again, frames)
    assert blocks.squares.keys() == whole.squares.keys()
    assert all(np.allclose(blocks.squares[place], whole.squares[place], rtol=1e-4) for place in whole.squares)
    assert wan.transformer.is_gradient_checkpointing


def test_too_little_memory_is_named(wan, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(FrameGains, "go_back", full)
    with pytest.raises(fastdit.ConfigError, match="enable_gradient_checkpointing"):
        follow(wan)
    assert "forward" not in wan.transformer.__dict__


def test_weights_are_offloaded_when_gradients_are_through(wan, monkeypatch):
    order = []
    go_back = FrameGains.go_back
    monkeypatch.setattr(type(wan), "maybe_free_model_hooks", lambda self: order.append("offloaded"))
    monkeypatch.setattr(FrameGains, "go_back", lambda self, frames: (order.append("back"), go_back(self, frames)))
    follow(wan)
    assert order == ["back", "offloaded"]
    assert "maybe_free_model_hooks" not in wan.__dict__


def test_operations_without_gradients_are_named(wan, monkeypatch):
    monkeypatch.setattr(wan.scheduler, "step", lambda out, *rest, **kwargs: (out.numpy(),))
    with pytest.raises(fastdit.ConfigError, match=r"does without: Can't call numpy"):
        follow(wan)
    assert "maybe_free_model_hooks" not in wan.__dict__


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_the_scheduler_keeps_no_graph_alive(wan, monkeypatch, goes_wrong):
    if goes_wrong:

        def full(*_, **__):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(FrameGains, "go_back", full)
        with pytest.raises(fastdit.ConfigError, match="decoder"):
            follow(wan)
    else:
        follow(wan)
    kept = [one for value in vars(wan.scheduler).values() for one in (value if isinstance(value, list) else [value])]
    tensors = [one for one in kept if isinstance(one, torch.Tensor)]
    assert tensors
    assert not any(one.requires_grad for one in tensors)


def test_exchanged_weights_are_asked_for_gradients_again(wan, monkeypatch):
    """As offloading does: parameters are other objects after the run, with what was asked of those before them."""
    go_back = FrameGains.go_back

    def exchanging(self, frames):
        go_back(self, frames)
        norm = wan.transformer.proj_out
        norm.weight = torch.nn.Parameter(norm.weight.detach().clone(), requires_grad=norm.weight.requires_grad)

    monkeypatch.setattr(FrameGains, "go_back", exchanging)
    follow(wan)
    assert all(weight.requires_grad for weight in wan.transformer.parameters())


def test_inference_mode_is_named_before_anything_runs(wan):
    labels = []
    with torch.inference_mode(), pytest.raises(fastdit.ConfigError, match="no_grad"):
        fastdit.search(wan, ["a circle"], density=0.8, call=CALL, ladder={"many": MANY}, on_run=labels.append)
    assert labels == []


@pytest.mark.parametrize("name", ["hunyuan_video", "hunyuan_video15"])
def test_branches_of_other_text_lengths_are_followed(name, monkeypatch):
    """The text of a call that is computed again is that of its own branch."""
    family = next(one for one in FAMILIES if one.name == name)
    pipe = family.build()
    pipe.set_progress_bar_config(disable=True)
    call = {**family.sizes[0], "num_inference_steps": 2}
    if name == "hunyuan_video":
        call |= {"true_cfg_scale": 3.0, "negative_prompt": "bad"}
        encode = type(pipe).encode_prompt

        def shorter(self, *args, **kwargs):
            embeds, pooled, mask = encode(self, *args, **kwargs)
            if "bad" in str(kwargs.get("prompt", args[:1])):
                mask = mask.clone()
                mask[:, mask.sum(1).min() - 3 :] = 0
            return embeds, pooled, mask

        monkeypatch.setattr(type(pipe), "encode_prompt", shorter)
    settings = {"call": call, "ladder": {"many": MANY}, "phases": (1.0,), "progress": False}
    plan = fastdit.search(pipe, ["a red circle"], density=0.98, **settings)
    assert plan.measured["density"] <= 1


def test_an_interrupted_run_leaves_nothing_behind(wan):
    def stop(*_, **__):
        raise KeyboardInterrupt

    wan.scheduler.step = stop
    with pytest.raises(KeyboardInterrupt):
        follow(wan)
    assert "forward" not in wan.transformer.__dict__
    assert next(wan.transformer.parameters()).requires_grad
    assert not hasattr(wan.transformer.blocks[0].attn1.processor, "slot")


@pytest.mark.parametrize("gradients", ["call", "frames"])
def test_a_pipeline_without_gradients_is_named_and_calls_do_without(wan, gradients):
    class Closed(type(wan)):
        pass

    if gradients == "call":

        def closed(self, **arguments):
            return type(wan).__call__(self, **arguments)

    else:

        @torch.no_grad()
        def closed(self, **arguments):
            with torch.no_grad():
                return super(Closed, self).__call__(**arguments)

    Closed.__call__ = closed
    pipe = Closed(**wan.components)
    pipe.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": 2}
    settings = {"density": 0.8, "call": call, "ladder": {"many": MANY}, "phases": (1.0,), "progress": False}
    with pytest.raises(fastdit.ConfigError, match="gains='calls'"):
        fastdit.search(pipe, ["a circle"], **settings)
    assert fastdit.search(pipe, ["a circle"], gains="calls", **settings).measured["density"] < 1
    with pytest.raises(fastdit.ConfigError, match="gains="):
        fastdit.search(pipe, ["a circle"], gains="none", **settings)
