"""Every kind of Wan pipeline on random weights: parity, dense decisions, steps, condition frames, what is refused."""

import functools

import pytest
import tiny_wan_variants
import torch
from sparse_runs import NO_DENSE, small

import fastdit

NEW_KINDS = [kind for kind in tiny_wan_variants.KINDS if kind not in ("t2v", "t2v_two")]
build = functools.cache(tiny_wan_variants.build)  # every test leaves the pipeline as it was


def run_short(pipe, **kwargs):
    # Video-to-video leaves out half of them.
    steps = 4 if "VideoToVideo" in type(pipe).__name__ else 2
    return tiny_wan_variants.run(pipe, **{"steps": steps, **kwargs})


def processors(pipe):
    found = [dict(m.attn_processors) for m in (pipe.transformer, getattr(pipe, "transformer_2", None)) if m is not None]
    return [(name, processor) for table in found for name, processor in table.items()]


def ticks(session):
    return sorted({(r.transformer, r.step, r.branch) for r in session.stats.records.values()})


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_parity_dense_decision_sparse_run_and_restore(kind):
    pipe = build(kind)
    # Two branches where they are cheap; the models with an image encoder read 512 tokens of text.
    run = functools.partial(run_short, guidance_scale=6.0 if kind in ("i2v_two", "v2v", "ti2v") else 1.0)
    before, dense = processors(pipe), run(pipe)
    with fastdit.enable(pipe, small(density=1.0)):
        assert (run(pipe) - dense).abs().max() <= 1e-5 * dense.abs().max()
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=1.0))) as session:
        assert torch.equal(run(pipe), dense)
        assert session.stats.density() == 1.0
    with fastdit.enable(pipe, small()) as session:
        sparse = run(pipe)
        assert sparse.isfinite().all()
        assert not torch.equal(sparse, dense)
        assert torch.equal(run(pipe), sparse)
        assert session.stats.density() < 1.0
    assert all(a is b for (_, a), (_, b) in zip(processors(pipe), before, strict=True))
    assert torch.equal(run(pipe), dense)


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_only_self_attention_over_the_video_is_replaced(kind):
    pipe = build(kind)
    with fastdit.enable(pipe, small()):
        for name, processor in processors(pipe):
            assert hasattr(processor, "slot") == name.endswith("attn1.processor"), name


def test_control_layers_of_vace_are_numbered_behind_the_others():
    pipe = build("vace")
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=0, dense_layers=(0,)))) as session:
        assert [slot.name.split(".")[0] for slot in session.slots] == ["blocks"] * 2 + ["vace_blocks"] * 2
        run_short(pipe, steps=1)
        assert {r.layer for r in session.stats.records.values() if r.dense_reason} == {0}
        assert {r.layer for r in session.stats.records.values()} == {0, 1, 2, 3}


def test_one_clock_for_two_transformers_without_a_step_in_the_context():
    pipe = build("i2v_two")
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=3, dense_layers=()))) as session:
        run_short(pipe, steps=4)
        assert ticks(session) == [(n, s, b) for n, s in ((0, 0), (0, 1), (1, 2), (1, 3)) for b in ("cond", "uncond")]
        assert {r.step for r in session.stats.records.values() if r.dense_reason is None} == {3}


@pytest.mark.parametrize(("strength", "executed"), [(1.0, 4), (0.5, 2), (0.25, 1)])
def test_video_to_video_counts_its_own_steps_and_branches_without_a_context(strength, executed):
    pipe = build("v2v")
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=0.5, dense_layers=()))) as session:
        for guidance, branches in ((6.0, ("call0", "call1")), (1.0, ("call0",))):
            run_short(pipe, strength=strength, guidance_scale=guidance)
            assert ticks(session) == [(0, step, branch) for step in range(executed) for branch in branches]
            dense = {r.step for r in session.stats.records.values() if r.dense_reason == "dense_steps"}
            assert dense == set(range((executed + 1) // 2))


def test_video_to_video_does_not_mix_its_branches():
    pipe = build("v2v")
    cached = fastdit.CachedConfig(source=small(), refresh_every=2, min_recall=None, schedule=NO_DENSE)
    with fastdit.enable(pipe, cached) as session:
        run_short(pipe)
        assert session.stats.mask_reuse()["built"] == session.stats.mask_reuse()["reused"] == 2 * 2


@pytest.mark.parametrize("kind", tiny_wan_variants.KINDS)
def test_the_frame_of_a_condition_image_is_kept(kind):
    pipe, grids = build(kind), []
    with fastdit.enable(pipe, small()) as session:
        handle = pipe.transformer.register_forward_pre_hook(
            lambda *_: grids.append(session.current_forward(0).grid)  # behind ours: the call has begun
        )
        run_short(pipe, steps=2, guidance_scale=1.0)
        handle.remove()
    in_channels = {"i2v", "i2v_two", "animate", "chronoedit"}
    expected = (1, 0) if kind in in_channels else (1, 1) if kind == "ti2v_image" else (0, 0)
    assert {(grid.kept_frames, grid.dense_frames) for grid in grids} == {expected}


def test_every_query_sees_the_keys_of_the_condition_image(monkeypatch):
    from fastdit import layer_slot as slot_module

    masks, original = [], slot_module.sparse_step

    def recorded(*args):
        result = original(*args)
        masks.append(result.launches[0].mask.to_dense())
        return result

    monkeypatch.setattr(slot_module, "sparse_step", recorded)
    for kind, rows in (("i2v", 0), ("ti2v_image", 1)):
        pipe = build(kind)
        masks.clear()
        with fastdit.enable(pipe, small(density=0.01)):
            run_short(pipe, steps=1)
        # 6 tokens of frame 0 make the last two key tiles of 4, and the last query tile of 8 where it is dense too.
        for keep in masks:
            assert keep.shape[2:] == (3, 3 + 2)
            assert keep[..., -2:].all()
            assert not keep[..., : 3 - rows, :3].all()
            assert not rows or keep[..., -1, :].all()


def test_guidance_off_batches_and_odd_grids():
    pipe = build("i2v")
    prompts = {"prompt": ["dance monkey", "a red circle"], "negative_prompt": ["negative"] * 2}
    calls = (
        {"guidance_scale": 1.0},
        prompts,
        {"size": (48, 80), "num_frames": 13},
        {"size": (16, 16), "num_frames": 1},
    )
    for call in calls:
        dense = run_short(pipe, steps=1, **call)
        with fastdit.enable(pipe, small(density=1.0)) as session:
            assert (run_short(pipe, steps=1, **call) - dense).abs().max() <= 1e-5 * dense.abs().max()
            branches = {"cond"} if "guidance_scale" in call else {"cond", "uncond"}
            assert {branch for _, _, branch in ticks(session)} == branches


def test_every_segment_of_animate_is_a_run():
    pipe = build("animate")
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=1, dense_layers=()))) as session:
        run_short(pipe, num_frames=17, guidance_scale=1.0)
        assert ticks(session) == [(0, 0, "cond"), (0, 1, "cond")]
        assert session.clock.begin_forward(0).run == 3


def test_chronoedit_may_drop_frames_on_the_way():
    from diffusers import UniPCMultistepScheduler

    pipe, before = build("chronoedit"), build("chronoedit").scheduler
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    call = {"steps": 3, "num_frames": 13, "enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 1}
    dense = run_short(pipe, **call)
    cached = fastdit.CachedConfig(source=small(density=1.0), refresh_every=5, schedule=NO_DENSE)
    with fastdit.enable(pipe, cached) as session:
        assert (run_short(pipe, **call) - dense).abs().max() <= 1e-5 * dense.abs().max()
        lengths = {r.step: (r.dense_pairs / 2) ** 0.5 for r in session.stats.records.values()}
        assert lengths == {0: 4 * 6, 1: 2 * 6, 2: 2 * 6}
    pipe.scheduler = before


def test_skyreels_with_diffusion_forcing_is_refused():
    pipe = build("skyreels")
    transformer = pipe.transformer
    with fastdit.enable(pipe, small()), torch.no_grad():
        with pytest.raises(fastdit.UnsupportedModelError, match="diffusion forcing"):
            transformer(
                torch.zeros(1, 16, 3, 4, 6), torch.zeros(1, 3), torch.zeros(1, 8, 64), enable_diffusion_forcing=True
            )
        transformer._set_ar_attention(3)
        with pytest.raises(fastdit.UnsupportedModelError, match="diffusion forcing"):
            run_short(pipe)
        transformer._set_ar_attention(1)
        run_short(pipe, steps=1)
        attn, hidden = transformer.blocks[0].attn1, torch.zeros(1, 18, 24)
        with pytest.raises(fastdit.UnsupportedModelError, match=r"blocks\.0\.attn1 masks its self-attention"):
            attn(hidden, None, torch.ones(18, 18, dtype=torch.bool))


@pytest.mark.parametrize(("kind", "blocks"), [("vace", "vace_blocks"), ("animate", "blocks")])
def test_an_unknown_processor_is_refused_and_nothing_is_changed(kind, blocks):
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb):
            return hidden_states

    pipe = build(kind)
    last = getattr(pipe.transformer, blocks)[-1].attn1
    theirs, last.processor = last.processor, Foreign()
    before = processors(pipe)
    with pytest.raises(fastdit.UnsupportedModelError, match="Foreign is not known"):
        fastdit.enable(pipe, small())
    assert all(a is b for (_, a), (_, b) in zip(processors(pipe), before, strict=True))
    last.processor = theirs
