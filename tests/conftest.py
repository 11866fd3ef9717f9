"""Shared settings: one thread (tiny ops with two are up to 100 times slower), no network, no progress bars."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings
from tests_support import build_tiny_wan, run_wan

torch.set_num_threads(1)

# The same examples in every run, and no verdict about the speed of the machine.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random numbers and threads do not depend on the tests that ran before; `fastdit bench` sets the threads."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def tiny_wan():
    return build_tiny_wan()


@pytest.fixture
def make_wan():
    return build_tiny_wan


@pytest.fixture
def run():
    return run_wan


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def pytest_ignore_collect(collection_path, config):
    """The Triton suites run in processes of their own, started by tests/kernels/test_triton_suites.py."""
    apart = collection_path.name in ("kernels_interpreter", "kernels_aot")
    return True if apart and not any(collection_path.name in argument for argument in config.args) else None
