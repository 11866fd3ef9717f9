"""One of two processes that share the sequences of tiny pipelines, on the CPU: what they find goes to files.

Started by tests/pipelines/compatibility/test_context_parallel.py with its rank, a folder and the names of families.
"""

import sys
import traceback
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from diffusers import ContextParallelConfig
from families import ALL_DENSE, FAMILIES, small_tiles, transformers

import fastdit

WORLD_SIZE = 2
# Ends the wait for a process that has failed alone.
TIMEOUT = timedelta(minutes=10)


def share_sequences(pipe):
    """`enable_parallelism`, which divides by the number of accelerators even where there is none."""
    with mock.patch("torch.accelerator.device_count", return_value=1):
        for transformer in transformers(pipe):
            transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=WORLD_SIZE))


def examine(family):
    """Latents of stock, dense and sparse runs, and of a pipeline that was enabled first."""
    pipe = family.build()
    if not getattr(pipe.transformer, "_cp_plan", None):
        return {}
    share_sequences(pipe)
    try:
        found = {"stock": family.run(pipe)}
    except RuntimeError as error:
        return {"stock_failure": type(error).__name__}
    with fastdit.enable(pipe, ALL_DENSE):
        found["dense"] = family.run(pipe)
    with fastdit.enable(pipe, small_tiles()) as session:
        found["sparse"] = family.run(pipe)
        found["density"] = torch.tensor(session.stats.density())
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles()):
        share_sequences(pipe)
        found["late"] = family.run(pipe)
    return found


def main(rank, folder, names):
    torch.set_num_threads(1)
    for family in (family for family in FAMILIES if family.name in names):
        # A group for each, so that one that fails leaves nothing under way for the next.
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder / family.name}.rendezvous",
            rank=rank,
            world_size=WORLD_SIZE,
            timeout=TIMEOUT,
        )
        try:
            found = examine(family)
        except Exception:  # noqa: BLE001  # reported by the test
            found = {"failure": traceback.format_exc()}
        torch.save(found, folder / f"{family.name}{rank}.pt")
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
