"""A package of somebody else registers adapters by entry points of its own: found and used, or skipped if broken."""

import importlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdit
from fastdit.adapters import load_adapters

PACKAGE = Path(__file__).parents[1] / "support" / "third_party_adapter"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Built from a copy (building leaves files behind) and installed where nothing else is."""
    source = tmp_path_factory.mktemp("source") / "acme"
    shutil.copytree(PACKAGE, source)
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    return target


@pytest.fixture
def acme(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    yield importlib.import_module("acme_video")
    for name in [name for name in sys.modules if name.split(".")[0] == "acme_video"]:
        del sys.modules[name]


def test_enable_finds_the_adapter_of_an_installed_package(acme, rng):
    torch.manual_seed(0)
    model, latents = acme.AcmeTransformer(), torch.randn(1, 3, 4, 5, 32, generator=rng)
    no_dense = fastdit.Schedule(dense_steps=0, dense_layers=())
    settings = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0}
    with torch.no_grad():
        dense = model(latents)
        with fastdit.enable(model, fastdit.AdaptiveConfig(density=1.0, schedule=no_dense, **settings)):
            assert torch.allclose(model(latents=latents), dense, atol=1e-5)
        with fastdit.enable(model, fastdit.AdaptiveConfig(density=0.3, schedule=no_dense, **settings)) as session:
            assert not torch.allclose(model(latents), dense, atol=1e-3)
            assert session.stats.density() < 0.6
        with fastdit.enable(model, fastdit.AdaptiveConfig(schedule=fastdit.Schedule(dense_steps=1))):
            assert torch.equal(model(latents), dense)
        assert not model._forward_pre_hooks
        assert torch.equal(model(latents), dense)


def test_an_adapter_that_cannot_be_imported_is_skipped_with_a_warning(acme, caplog):
    with caplog.at_level(logging.WARNING, "fastdit"):
        families = [adapter.family for adapter in load_adapters()]
    assert {"acme", "wan"} <= set(families)
    assert "adapter 'acme_broken' is skipped, it cannot be imported: No module named 'acme_engine'" in caplog.text


def test_without_the_package_its_model_is_not_supported():
    class AcmeTransformer(torch.nn.Module):
        pass

    with pytest.raises(fastdit.UnsupportedModelError, match="AcmeTransformer is not supported"):
        fastdit.enable(AcmeTransformer())
