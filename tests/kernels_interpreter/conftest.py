"""This folder runs in a process of its own, see tests/kernels/test_triton_suites.py: the flag is read on import."""

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run this folder with TRITON_INTERPRET=1 OMP_NUM_THREADS=1"

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

torch.set_num_threads(1)


def widen(handle):
    """The interpreter keeps bf16 as bit patterns and multiplies those; a dot needs the numbers."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@pytest.fixture(autouse=True)
def dots_of_bf16(monkeypatch):
    original = InterpreterBuilder.create_dot
    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: original(self, widen(a), widen(b), *rest)
    )


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory is NaN, or a tile far out of range, so that an element nobody writes cannot pass."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poison(x):
        return x.fill_(torch.nan) if x.dtype.is_floating_point else x.fill_(1 << 20)

    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: x if (x := new_empty(*a, **k)).dtype == torch.int8 else poison(x)
    )
