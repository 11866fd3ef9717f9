"""Extra memory grows with the inputs and the mask, never with the square of the length."""

import json
import subprocess
import sys

import pytest

MEGABYTE = 1 << 20
# One head of 65,536 tokens in fp32, head_dim 64: an input is 16 MiB, all scores would be 16 GiB, and the listed keys
# and values of all query tiles at once 0.8 GiB.
INPUT_BYTES = 16 * MEGABYTE
# Gathered tiles, scratch of the fused attention, allocator slack.
WORKSPACE_BYTES = 32 * MEGABYTE

PROGRAM = """
import json, sys
import torch
from fastdit_kernels import BlockMask, TileLayout, block_sparse_attention
from fastdit_kernels.implementations import torch_gather

def peak():  # of this program alone: ru_maxrss would begin at the peak of the process that started it
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

length, levels, gather_all = json.loads(sys.argv[1])
torch.set_num_threads(1)
if gather_all:
    torch_gather.CACHE_BYTES = 1 << 40

def inputs(length):
    generator = torch.Generator().manual_seed(0)
    layout = TileLayout((length,), 128, levels)
    keep = torch.rand(1, 1, layout.num_tiles, layout.total_tiles, generator=generator).argsort(-1).argsort(-1)
    keep = keep < max(1, layout.num_tiles // 20)
    mask = BlockMask.from_dense(keep, q_len=length, kv_len=length, q_tile=128, kv_tile=128, num_levels=levels)
    return *(torch.randn(1, 1, length, 64, generator=generator) for _ in range(3)), mask

block_sparse_attention(*inputs(500), return_lse=True)  # loads the code
arguments = inputs(length)
before = peak()
block_sparse_attention(*arguments, return_lse=True, implementation="torch")
print(peak() - before)
"""


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")


def extra_bytes(length, levels=1, gather_all=False):
    command = [sys.executable, "-c", PROGRAM, json.dumps([length, levels, gather_all])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "levels", "inputs"),
    [
        (65536, 1, 1),  # the output
        (65500, 1, 4),  # padded query, key, value and output
        (65500, 3, 10),  # key and value of all levels, the parts they are joined from, query, output
    ],
)
def test_extra_memory_is_a_few_inputs_and_a_fixed_workspace(length, levels, inputs):
    assert extra_bytes(length, levels) <= inputs * INPUT_BYTES + WORKSPACE_BYTES


@linux_only
@pytest.mark.slow
def test_the_bound_notices_a_copy_of_the_keys_for_every_query_tile():
    assert extra_bytes(65536, gather_all=True) > 4 * INPUT_BYTES + WORKSPACE_BYTES
