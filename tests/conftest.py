"""Shared settings: one thread (tiny ops with two are up to 100 times slower), no network, no progress bars."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch
from tests_support import build_tiny_wan, run_wan

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
