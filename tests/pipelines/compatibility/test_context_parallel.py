"""Diffusers' own context parallelism: two processes against one, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compatibility_document import not_applicable, refused
from diffusers import ContextParallelConfig
from families import attention_layers, small_tiles

import fastdit

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture(scope="session")
def shared_runs(request, tmp_path_factory):
    """Takes the name of a family, returns what two processes found that share its sequences.

    Two processes serve all families of the session, because most of their time goes into imports.
    """
    folder = tmp_path_factory.mktemp("ulysses")
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_ulysses"]
    names = [item.callspec.params["family"].name for item in items]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *filter(None, sys.path)])}
    command = [sys.executable, SUPPORT / "ulysses_worker.py", folder, *names]
    # Into files: a pipe that nobody reads yet may fill up and stop its process, for which the other one waits.
    logs = [folder / f"stderr{rank}.txt" for rank in range(2)]
    workers = [
        subprocess.Popen([*command[:2], str(rank), *command[2:]], env=environment, stderr=log.open("w"))
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [worker.wait(timeout=1200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return lambda name: [torch.load(folder / f"{name}{rank}.pt") for rank in range(2)]


@pytest.mark.cell("Context parallelism", "Ulysses over two processes equals one process")
def test_ulysses(family, dense, shared_runs):
    pipe = family.build()
    if not getattr(pipe.transformer, "_cp_plan", None):
        not_applicable("the transformer has no plan for splitting sequences")
    with fastdit.enable(pipe, small_tiles()) as session:
        sparse, density = family.run(pipe), session.stats.density()
    found = shared_runs(family.name)
    if "stock_failure" in found[0]:
        not_applicable(f"the stock pipeline fails with {found[0]['stock_failure']}")
    for one in found:
        assert "failure" not in one, one["failure"]
        assert torch.equal(one["stock"], dense)
        assert torch.equal(one["dense"], dense)
        assert torch.equal(one["sparse"], sparse)
        assert torch.equal(one["late"], sparse)
    # Each process counts its own heads.
    assert sum(one["density"].item() for one in found) / 2 == pytest.approx(density)


@pytest.mark.cell("Context parallelism", "ring attention")
def test_ring(family):
    _refused(family, ContextParallelConfig(ring_degree=2), "ring_degree=2")
    refused("no process of a ring sees all keys; use ulysses_degree")


@pytest.mark.cell("Context parallelism", "ulysses_anything")
def test_ulysses_anything(family):
    _refused(family, ContextParallelConfig(ulysses_degree=2, ulysses_anything=True), "ulysses_anything=True")
    refused("processes have different shares of the sequence; use a size that divides")


def _refused(family, context, message):
    from diffusers.models._modeling_parallel import ParallelConfig

    pipe = family.build()
    if not hasattr(attention_layers(pipe)[0].processor, "_parallel_config"):
        not_applicable("the attention does not take part in context parallelism")
    with fastdit.enable(pipe, small_tiles()):
        for layer in attention_layers(pipe):
            layer.processor._parallel_config = ParallelConfig(context)
        with pytest.raises(fastdit.UnsupportedModelError, match=f"{message}|context parallelism is on") as raised:
            family.run(pipe)
    if message not in str(raised.value):
        refused("joint attention is not shared among processes yet")
