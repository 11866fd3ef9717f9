"""Runs a search that is killed with SIGKILL again and again, and resumed until it is done; then one that is not.

Usage: python killed_search.py FOLDER. Forks, so it must be started with OMP_NUM_THREADS=1.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from tests_support import build_tiny_wan

import fastdit
from fastdit.plan import ALL_SPARSE

CALL = {
    "negative_prompt": "negative",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "max_sequence_length": 16,
}
SMALL = {"q_tile": 8, "kv_tile": 4, "schedule": ALL_SPARSE, "min_tokens": 0}
LADDER = {f"adaptive_{d}": fastdit.AdaptiveConfig(density=d, **SMALL) for d in (0.2, 0.5, 0.8)}


def find(pipe, folder):
    plan = fastdit.search(
        pipe,
        ["a red circle", "a blue square"],
        min_psnr=45.0,
        call=CALL,
        ladder=LADDER,
        phases=(0.5, 1.0),
        num_measured=1,
        max_rounds=2,
        run_directory=folder / "run",
        progress=False,
    )
    plan.save(folder / "plan.json")


def die_in_forward(pipe, forwards):
    """SIGKILL in the middle of the given transformer call, counted from now."""
    count = []

    def hook(*_):
        count.append(1)
        if len(count) == forwards:
            os.kill(os.getpid(), signal.SIGKILL)

    pipe.transformer.blocks[1].register_forward_hook(hook)


def die_in_writing(writes):
    """SIGKILL when a file is written but does not have its name yet."""
    count, replace = [], Path.replace

    def killing(self, target):
        count.append(1)
        if len(count) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = killing


def main(folder):
    torch.set_num_threads(1)
    pipe = build_tiny_wan()
    kills = 0
    for life in range(40):
        child = os.fork()
        if child == 0:
            # A run has six calls and the measured one repeats some, so deaths fall in the first to third run.
            die_in_writing(2) if life % 2 else die_in_forward(pipe, 8 + 3 * (life % 3))
            find(pipe, folder / "killed")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    find(pipe, folder / "whole")
    print(kills)


if __name__ == "__main__":
    for name in ("killed", "whole"):
        (Path(sys.argv[1]) / name).mkdir()
    main(Path(sys.argv[1]))
