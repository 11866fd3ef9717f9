"""The backend that a user sets, before or after `enable`, computes everything that stays dense."""

import functools

import pytest
import tiny_ltx
import tiny_wan_variants
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend

import fastdit

CHOSEN = AttentionBackendName._NATIVE_MATH
NO_DENSE = fastdit.Schedule(dense_steps=0, dense_layers=())
LAYERS, STEPS = 2, 2
# Pipeline, its runner, and self-attention layers and transformer calls per run.
CASES = {
    "wan": (tiny_wan_variants, "t2v", LAYERS, 2 * STEPS),
    "wan_i2v": (tiny_wan_variants, "i2v_two", LAYERS, 2 * STEPS),
    "wan_vace": (tiny_wan_variants, "vace", 2 * LAYERS, 2 * STEPS),
    "ltx": (tiny_ltx, "t2v", LAYERS, STEPS),
}
build = functools.cache(lambda case: CASES[case][0].build(CASES[case][1]))


def sparse():
    return fastdit.AdaptiveConfig(q_tile=8, kv_tile=4, min_tokens=0, density=0.4, schedule=NO_DENSE)


def all_dense():
    return fastdit.AdaptiveConfig(schedule=fastdit.Schedule(dense_steps=1.0))


def first_head_dense():
    return fastdit.MixedConfig(heads={0: "dense"}, default=sparse(), schedule=NO_DENSE)


def set_backend(pipe, name):
    for transformer in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        if transformer is not None:
            transformer.set_attention_backend(name) if name else transformer.reset_attention_backend()
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)  # it is set for all pipelines otherwise


@pytest.fixture
def shapes(monkeypatch):
    """Shapes `(query, key)` of what the chosen backend computes."""
    seen = []
    original = _AttentionBackendRegistry._backends[CHOSEN]

    def counted(query, key, value, *args, **kwargs):
        seen.append((tuple(query.shape), tuple(key.shape)))
        return original(query, key, value, *args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, CHOSEN, counted)
    yield seen
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def self_attention(shapes):
    return [query for query, key in shapes if query[1] == key[1]]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_dense_calls_run_the_chosen_backend(case, before, shapes):
    pipe, (module, _, layers, calls) = build(case), CASES[case]
    set_backend(pipe, CHOSEN.value)
    dense = module.run(pipe, steps=STEPS)
    expected = list(shapes)
    set_backend(pipe, None)
    shapes.clear()
    if before:
        set_backend(pipe, CHOSEN.value)
    with fastdit.enable(pipe, all_dense()):
        if not before:
            set_backend(pipe, CHOSEN.value)
        assert torch.equal(module.run(pipe, steps=STEPS), dense)
        assert shapes == expected
        assert len(self_attention(shapes)) == layers * calls
        set_backend(pipe, None)
        shapes.clear()
        module.run(pipe, steps=1)
        assert not shapes
    assert not module.run(pipe, steps=1).isnan().any()
    assert not shapes


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_dense_heads_run_the_chosen_backend(case, before, shapes):
    pipe, (module, _, layers, calls) = build(case), CASES[case]
    if before:
        set_backend(pipe, CHOSEN.value)
    with fastdit.enable(pipe, first_head_dense()):
        if not before:
            set_backend(pipe, CHOSEN.value)
        module.run(pipe, steps=STEPS)
        assert len(self_attention(shapes)) == layers * calls
        assert {query[2] for query in self_attention(shapes)} == {1}
    set_backend(pipe, None)


def test_the_backend_of_a_with_block_is_honoured(shapes):
    pipe = build("ltx")
    with fastdit.enable(pipe, first_head_dense()), attention_backend(CHOSEN):
        tiny_ltx.run(pipe, steps=1)
    assert len(self_attention(shapes)) == LAYERS
