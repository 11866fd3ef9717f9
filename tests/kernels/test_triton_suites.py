"""The Triton kernel: its two suites in processes of their own, and what happens where it cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdit_kernels import (
    BlockMask,
    KernelUnavailableError,
    available_implementations,
    block_sparse_attention,
    dispatch,
)

ROOT = Path(__file__).parents[2]


def run(*command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(("folder", "interpret"), [("tests/kernels_interpreter", "1"), ("tests/kernels_aot", "0")])
def test_suite(folder, interpret):
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", folder, TRITON_INTERPRET=interpret)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_works_without_triton():
    """Blocks the import, as on systems that have no Triton."""
    program = """
import sys
sys.modules["triton"] = None
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch, fastdit_kernels as f
q = torch.randn(1, 1, 64, 32)
mask = f.BlockMask.from_dense(torch.ones(1, 1, 1, 1, dtype=torch.bool), q_len=64, kv_len=64, q_tile=64)
print(f.block_sparse_attention(q, q, q, mask).shape, f.available_implementations(q)["triton"])
"""
    done = run("-c", program, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 1, 64, 32]) Triton is not installed" in done.stdout


def test_importing_the_package_does_not_import_triton():
    done = run("-c", "import sys, fastdit_kernels; assert 'triton' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shape", "dtype", "tiles", "architecture", "message"),
    [
        ((1, 1, 64, 48), torch.float32, None, "sm_90", "head_dim 48"),
        ((1, 1, 64, 64), torch.float64, None, "sm_90", "float64"),
        ((1, 1, 64, 64), torch.float16, (32, 64), "sm_90", "tiles of 32 query and 64 key rows"),
        ((1, 1, 64, 64), torch.float16, (128, 64), "sm_90", None),
    ],
)
def test_the_reason_is_exact(monkeypatch, shape, dtype, tiles, architecture, message):
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "architecture_of", lambda device: architecture)
    reason = dispatch.IMPLEMENTATIONS["triton"].unavailable_reason(torch.zeros(shape, dtype=dtype), tiles)
    assert reason is None if message is None else message in reason


def test_tensors_on_a_cpu_are_refused_by_name(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    q = torch.zeros(1, 1, 64, 64)
    mask = BlockMask.from_dense(torch.ones(1, 1, 1, 1, dtype=torch.bool), q_len=64, kv_len=64, q_tile=64)
    assert "CUDA" in available_implementations(q)["triton"]
    with pytest.raises(KernelUnavailableError, match="needs a CUDA device"):
        block_sparse_attention(q, q, q, mask, implementation="triton")
