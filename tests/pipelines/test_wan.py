"""The whole way through on random Wan pipelines: restore, parity, isolation, failure."""

import gc
import logging
import weakref

import pytest
import torch
from sparse_runs import NO_DENSE, raises_in_call, small
from torch import nn

import fastdit
from fastdit_pipelines.tiny.components import TEXT_DIM
from fastdit_pipelines.wan import finish, project


def processors(pipe):
    modules = [m for m in (pipe.transformer, pipe.transformer_2) if m is not None]
    return [attn.processor for m in modules for block in m.blocks for attn in (block.attn1, block.attn2)]


@pytest.mark.parametrize("two_transformers", [False, True])
def test_disable_leaves_the_very_same_pipeline(make_wan, run, two_transformers):
    pipe = make_wan(two_transformers=two_transformers)
    before, dense = processors(pipe), run(pipe)
    state = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    fastdit.enable(pipe, small())
    assert pipe.transformer.state_dict().keys() == state.keys()
    assert not torch.equal(run(pipe), dense)
    fastdit.disable(pipe)
    assert all(a is b for a, b in zip(processors(pipe), before, strict=True))
    assert all(torch.equal(pipe.transformer.state_dict()[name], value) for name, value in state.items())
    assert "forward" not in vars(pipe.transformer)
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(run(pipe), dense)


def test_only_self_attention_is_replaced(tiny_wan):
    cross = [block.attn2.processor for block in tiny_wan.transformer.blocks]
    with fastdit.enable(tiny_wan, small()):
        assert [block.attn2.processor for block in tiny_wan.transformer.blocks] == cross
        assert all(hasattr(block.attn1.processor, "slot") for block in tiny_wan.transformer.blocks)


def test_a_dense_decision_is_bit_identical(tiny_wan, run):
    dense = run(tiny_wan)
    for config in (
        small(schedule=fastdit.Schedule(dense_steps=1.0)),
        small(schedule=fastdit.Schedule(dense_steps=0, dense_layers=(0, 1))),
        fastdit.AdaptiveConfig(min_tokens=10_000),
    ):
        with fastdit.enable(tiny_wan, config) as session:
            assert torch.equal(run(tiny_wan), dense)
            assert session.stats.density() == 1.0


@pytest.mark.parametrize("size", [(32, 48), (16, 16), (48, 80)])
def test_density_one_equals_dense(tiny_wan, run, size):
    dense = run(tiny_wan, size=size)
    with fastdit.enable(tiny_wan, small(density=1.0)):
        assert (run(tiny_wan, size=size) - dense).abs().max() <= 1e-5 * dense.abs().max()


@pytest.mark.parametrize("fused", [False, True])
def test_our_processor_with_dense_attention_is_bit_identical(tiny_wan, fused, rng):
    transformer = tiny_wan.transformer
    if fused:
        transformer.fuse_qkv_projections()
    attn = transformer.blocks[0].attn1
    latents = torch.randn(1, 16, 3, 4, 6, generator=rng)
    hidden = torch.randn(1, 18, 24, generator=rng)
    rotary = transformer.rope(latents)
    query, key, value = project(attn, hidden, rotary)
    out = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    ours = finish(attn, out.transpose(1, 2).flatten(2, 3))
    assert torch.equal(ours, attn.processor(attn, hidden, None, None, rotary))


def test_a_sparse_run_is_deterministic_and_leaves_the_global_random_state(tiny_wan, run):
    with fastdit.enable(tiny_wan, small()):
        torch.manual_seed(7)
        state = torch.random.get_rng_state()
        first = run(tiny_wan)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(run(tiny_wan), first)
        assert first.isfinite().all()


def test_enabling_twice_raises_and_changes_nothing(tiny_wan, make_wan):
    session = fastdit.enable(tiny_wan, small())
    ours = processors(tiny_wan)
    with pytest.raises(fastdit.AlreadyEnabledError, match="disable"):
        fastdit.enable(tiny_wan, small())
    other = make_wan()
    before = processors(other)
    other.transformer_2 = tiny_wan.transformer  # its first transformer is free, its second one is not
    with pytest.raises(fastdit.AlreadyEnabledError, match="shares"):
        fastdit.enable(other, small())
    other.transformer_2 = None
    assert all(a is b for a, b in zip(processors(other), before, strict=True))
    assert all(a is b for a, b in zip(processors(tiny_wan), ours, strict=True))
    session.close()
    fastdit.enable(tiny_wan, small()).close()


def test_disabling_what_is_not_enabled_raises(tiny_wan):
    with pytest.raises(fastdit.NotEnabledError, match="enable"):
        fastdit.disable(tiny_wan)
    session = fastdit.enable(tiny_wan, small())
    fastdit.disable(tiny_wan)
    with pytest.raises(fastdit.NotEnabledError, match="closed"):
        session.close()


def test_a_second_pipeline_stays_dense(make_wan, run):
    one, two = make_wan(), make_wan()
    dense = run(two)
    with fastdit.enable(one, small()):
        assert torch.equal(run(two), dense)


def test_the_session_does_not_keep_the_pipeline_alive(make_wan):
    pipe = make_wan()
    fastdit.enable(pipe, small())
    reference = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert reference() is None


def test_a_bare_transformer_can_be_enabled(tiny_wan, rng):
    transformer = tiny_wan.transformer
    inputs = {
        "hidden_states": torch.randn(1, 16, 3, 4, 6, generator=rng),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, TEXT_DIM, generator=rng),
        "return_dict": False,
    }
    with torch.no_grad():
        dense = transformer(**inputs)[0]
        with fastdit.enable(transformer, small(density=1.0)):
            assert torch.allclose(transformer(**inputs)[0], dense, atol=1e-5)
        with (
            fastdit.enable(transformer, small(schedule=fastdit.Schedule(dense_steps=0.5))),
            pytest.raises(fastdit.ConfigError, match="int"),
        ):
            transformer(**inputs)
        assert torch.equal(transformer(**inputs)[0], dense)


def test_branches_never_share_state(tiny_wan, rng):
    transformer = tiny_wan.transformer
    latents = torch.randn(1, 16, 3, 4, 6, generator=rng)
    texts = {name: torch.randn(1, 8, TEXT_DIM, generator=rng) for name in ("cond", "uncond")}

    def call(branch):
        # The bare name is what every supported Diffusers takes; the clock counts the calls of each branch.
        with torch.no_grad(), transformer.cache_context(branch):
            return transformer(latents, torch.tensor([500.0]), texts[branch], return_dict=False)[0]

    with fastdit.enable(transformer, small()) as session:
        alone = [call("cond") for _ in range(3)]
        session.reset()
        mixed = []
        for _ in range(3):
            mixed.append(call("cond"))
            call("uncond")
        assert all(torch.equal(a, b) for a, b in zip(alone, mixed, strict=True))
        assert {(r.branch, r.step) for r in session.stats.records.values()} == {
            (branch, step) for branch in ("cond", "uncond") for step in range(3)
        }


def test_another_resolution_right_after(tiny_wan, run):
    with fastdit.enable(tiny_wan, small()) as session:
        run(tiny_wan, size=(32, 48))
        changed = run(tiny_wan, size=(48, 32), num_frames=17)
        assert {r.dense_pairs for r in session.stats.records.values()} == {2 * (5 * 3 * 2) ** 2}
    with fastdit.enable(tiny_wan, small()):
        assert torch.equal(run(tiny_wan, size=(48, 32), num_frames=17), changed)


def test_an_exception_inside_a_forward_leaves_the_pipeline_usable(tiny_wan, run):
    with fastdit.enable(tiny_wan, small(schedule=fastdit.Schedule(dense_steps=2, dense_layers=()))) as session:
        clean = run(tiny_wan)
        with raises_in_call(tiny_wan.transformer.blocks[1].attn1.to_out[0], 3):  # step 1, cond
            run(tiny_wan)
        assert torch.equal(run(tiny_wan), clean)
        assert session.stats.dense_reasons() == {"dense_steps": 2 * 2 * 2}


def test_an_interrupted_run_is_followed_by_a_clean_one(tiny_wan, run):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 1
        return tensors

    with fastdit.enable(tiny_wan, small(schedule=fastdit.Schedule(dense_steps=2, dense_layers=()))) as session:
        clean = run(tiny_wan)
        run(tiny_wan, callback_on_step_end=stop)
        assert {r.step for r in session.stats.records.values()} == {0, 1}
        assert torch.equal(run(tiny_wan), clean)
        assert {r.step for r in session.stats.records.values()} == {0, 1, 2, 3}


def test_batches_and_guidance_off(tiny_wan, run):
    with fastdit.enable(tiny_wan, small()) as session:
        batch = run(tiny_wan, num_videos_per_prompt=2)
        assert batch.shape[0] == 2
        run(tiny_wan, guidance_scale=1.0)
        assert {r.branch for r in session.stats.records.values()} == {"cond"}


def test_statistics_and_summary(tiny_wan, run):
    with fastdit.enable(tiny_wan, small(schedule=fastdit.Schedule(dense_steps=0.25, dense_layers=(0,)))) as session:
        assert "no run yet" in session.summary()
        run(tiny_wan)
        stats = session.stats
        # 18 tokens in query tiles 8 + 8 + 2 and key tiles 4 + 4 + 4 + 4 + 2.
        assert len(stats.records) == 2 * 4 * 2
        assert stats.dense_reasons() == {"dense_steps": 4, "dense_layers": 6}
        sparse = stats.density(sparse_only=True)
        assert stats.density() == pytest.approx((10 + 6 * sparse) / 16)
        text = session.summary()
        assert f"{stats.density():.3f}" in text
        assert "dense_layers" in text


def test_backend_choice_reaches_the_original(tiny_wan):
    with fastdit.enable(tiny_wan, small()):
        tiny_wan.transformer.set_attention_backend("_native_math")
        processor = tiny_wan.transformer.blocks[0].attn1.processor
        assert processor.original._attention_backend is processor._attention_backend is not None
        tiny_wan.transformer.reset_attention_backend()
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


@pytest.mark.parametrize("method", ["mixed", "cached"])
def test_context_parallelism_is_refused_where_heads_are_counted(tiny_wan, run, method):
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    table = fastdit.MixedConfig(heads={0: "dense"}, min_tokens=0, schedule=NO_DENSE)
    config = table if method == "mixed" else fastdit.CachedConfig(source=table, min_tokens=0, schedule=NO_DENSE)
    with fastdit.enable(tiny_wan, config):
        processor = tiny_wan.transformer.blocks[0].attn1.processor
        processor._parallel_config = ParallelConfig(ContextParallelConfig(ulysses_degree=2))
        with pytest.raises(fastdit.UnsupportedModelError, match="context parallelism with MixedConfig"):
            run(tiny_wan)
        processor._parallel_config = ParallelConfig()
        with pytest.raises(fastdit.UnsupportedModelError, match="tensor parallelism"):
            run(tiny_wan)
        processor._parallel_config = None


def test_a_wrapper_put_on_after_us_survives_disable(tiny_wan, run):
    dense = run(tiny_wan)
    fastdit.enable(tiny_wan, small())
    transformer, calls = tiny_wan.transformer, []
    inner = transformer.forward

    def wrapper(*args, **kwargs):  # what accelerate's offloading does
        calls.append(1)
        return inner(*args, **kwargs)

    transformer.forward = wrapper
    fastdit.disable(tiny_wan)
    assert torch.equal(run(tiny_wan), dense)
    assert len(calls) == 8
    with fastdit.enable(tiny_wan, small()) as session:
        run(tiny_wan)
        assert session.stats.density() < 1.0
    assert torch.equal(run(tiny_wan), dense)


def test_a_processor_that_somebody_else_put_in_is_left_to_them(tiny_wan):
    fastdit.enable(tiny_wan, small())
    theirs = object.__new__(type(tiny_wan.transformer.blocks[0].attn2.processor))
    tiny_wan.transformer.blocks[0].attn1.processor = theirs
    fastdit.disable(tiny_wan)
    assert tiny_wan.transformer.blocks[0].attn1.processor is theirs


def test_unsupported_things_are_named():
    class UNetPipeline:
        unet = nn.Linear(1, 1)

    with pytest.raises(fastdit.UnsupportedModelError, match="UNetPipeline has no transformer"):
        fastdit.enable(UNetPipeline())
    with pytest.raises(fastdit.UnsupportedModelError, match=r"Linear is not supported; .* WanTransformer3D"):
        fastdit.enable(nn.Linear(1, 1))
    with pytest.raises(fastdit.ConfigError, match="AdaptiveConfig"):
        fastdit.enable(nn.Linear(1, 1), 0.5)
    with pytest.raises(fastdit.PlanError, match="plan 'adaptive' cannot be read"):
        fastdit.enable(nn.Linear(1, 1), "adaptive")


def test_a_broken_adapter_is_skipped_with_a_warning(monkeypatch, caplog, tiny_wan):
    from importlib.metadata import EntryPoint

    from fastdit import adapters

    broken = EntryPoint("broken", "no_such_package:Adapter", adapters.ENTRY_POINT_GROUP)
    real = list(adapters.entry_points(group=adapters.ENTRY_POINT_GROUP))
    monkeypatch.setattr(adapters, "entry_points", lambda group: [*real, broken])
    with caplog.at_level(logging.WARNING, "fastdit"), fastdit.enable(tiny_wan, small()):
        assert "'broken' is skipped" in caplog.text


def test_the_old_form_of_the_cache_context(tiny_wan):
    """Diffusers up to 0.40 passes the bare name."""
    with fastdit.enable(tiny_wan, small()) as session:
        hook = tiny_wan.transformer._diffusers_hook.get_hook("fastdit")
        hook.context.set_context("uncond")
        assert session.clock.begin_forward(0).branch == "uncond"


def test_an_unknown_processor_is_refused_and_nothing_is_changed(tiny_wan):
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb):
            return hidden_states

    first, last = tiny_wan.transformer.blocks[0].attn1, tiny_wan.transformer.blocks[-1].attn1
    before, last.processor = first.processor, Foreign()
    with pytest.raises(fastdit.UnsupportedModelError, match="Foreign is not known"):
        fastdit.enable(tiny_wan, small())
    assert first.processor is before


def test_a_processor_with_other_parameters_is_refused(tiny_wan):
    base = type(tiny_wan.transformer.blocks[0].attn1.processor)

    class Newer(base):
        def __call__(self, attn, hidden_states, encoder_hidden_states, mask, rotary_emb):
            return hidden_states

    tiny_wan.transformer.blocks[0].attn1.processor = Newer()
    with pytest.raises(fastdit.UnsupportedModelError, match=r"takes .*mask, rotary_emb"):
        fastdit.enable(tiny_wan, small())
