"""What changes the weights or the layers that hold them."""

import pytest
import torch
from combined_feature import check_feature
from compatibility_document import not_applicable
from families import NO_DENSE, attention_layers, transformers
from torch import nn

import fastdit

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_lora(pipe):
    peft = pytest.importorskip("peft")
    for transformer in transformers(pipe):
        transformer.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in sorted(transformer.named_parameters()):
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def on_all(name, *arguments, **keywords):
    """What calls the method `name` of all transformers of a pipeline."""

    def call(pipe):
        for transformer in transformers(pipe):
            getattr(transformer, name)(*arguments, **keywords)

    return call


@pytest.mark.cell("Weights", "LoRA loaded before and after enable")
def test_lora(family):
    check_feature(family, add_lora)


@pytest.mark.cell("Weights", "LoRA fused before and after enable")
def test_fused_lora(family):
    def add_and_fuse(pipe):
        add_lora(pipe)
        on_all("fuse_lora")(pipe)

    check_feature(family, add_and_fuse)


@pytest.mark.cell("Weights", "LoRA loaded, fused, unfused and unloaded while enabled")
def test_lora_cycle(family):
    pipe = family.build()
    # Fixed tiles: unfused weights are rounded ones, which may choose others.
    with fastdit.enable(
        pipe, fastdit.StaticConfig(pattern="frames:1", q_tile=8, kv_tile=4, schedule=NO_DENSE, min_tokens=0)
    ):
        plain = family.run(pipe)
        add_lora(pipe)
        loaded = family.run(pipe)
        assert not torch.equal(loaded, plain)
        on_all("fuse_lora")(pipe)
        assert (family.run(pipe) - loaded).abs().max() <= 1e-4 * loaded.abs().max()
        on_all("unfuse_lora")(pipe)
        on_all("unload_lora")(pipe)
        assert (family.run(pipe) - plain).abs().max() <= 1e-4 * plain.abs().max()


class Wrapped(nn.Module):
    """Stands for a quantised layer: it can be called, and has no weight to read."""

    def __init__(self, linear):
        super().__init__()
        self.hidden = [linear]

    def forward(self, x):
        return self.hidden[0](x)


@pytest.mark.cell("Weights", "linear layers replaced by modules without a weight")
def test_wrapped_linears(family):
    def wrap(pipe):
        for layer in attention_layers(pipe):
            for name in ("to_q", "to_k", "to_v"):
                setattr(layer, name, Wrapped(getattr(layer, name)))
            if getattr(layer, "to_out", None) is not None:
                layer.to_out[0] = Wrapped(layer.to_out[0])

    check_feature(family, wrap)


@pytest.mark.cell("Weights", "linear layers of the attention quantised to int8 by torch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_linears(family):
    def quantise(pipe):
        for layer in attention_layers(pipe):
            torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8, inplace=True)

    # The scale of a layer's input follows from all of its tokens; invalid text, which is left out, is the largest here.
    # Elsewhere a value at the edge between two of int8 may fall to the other side.
    check_feature(family, quantise, tolerance=None if family.name == "hunyuan_video15" else 0.05)


@pytest.mark.cell("Weights", "enable_layerwise_casting")
def test_layerwise_casting(family):
    check_feature(
        family, on_all("enable_layerwise_casting", storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    )


@pytest.mark.cell("Weights", "fuse_qkv_projections")
def test_fused_projections(family):
    if not hasattr(family.build().transformer, "fuse_qkv_projections"):
        not_applicable("the transformer cannot fuse projections")
    check_feature(family, on_all("fuse_qkv_projections"))


@pytest.mark.cell("Weights", "set_attention_backend is what dense calls use")
def test_attention_backend(family):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    try:
        check_feature(family, on_all("set_attention_backend", "_native_math"))
    finally:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
