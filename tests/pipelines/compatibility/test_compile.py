"""torch.compile: one graph for all layers and steps, with decisions that change from call to call."""

import pytest
import torch
from compatibility_document import not_applicable, refused
from families import close, small_tiles, transformers
from torch._dynamo.utils import counters

import fastdit

# Dense and sparse steps in one run, as users have them.
SETTINGS = {"schedule": fastdit.Schedule(dense_steps=1, dense_layers=())}
# Graphs, guards and recompilations do not depend on what the graphs are turned into, and "eager" takes seconds less.
BACKEND = {"fullgraph": True, "backend": "eager"}
# Families that pad text have a number of valid tokens for each.
PROMPTS = ({}, {"prompt": "a prompt of other length"})


def blocks(pipe):
    for transformer in transformers(pipe):
        transformer.compile_repeated_blocks(**BACKEND)


def module(pipe):
    for transformer in transformers(pipe):
        transformer.compile(**BACKEND)


def wrapper(pipe):
    for name in ("transformer", "transformer_2")[: len(transformers(pipe))]:
        setattr(pipe, name, torch.compile(getattr(pipe, name), **BACKEND))


@pytest.mark.cell("Compilation", "compile_repeated_blocks(fullgraph=True), as many graphs as the stock model")
def test_repeated_blocks(family, dense):
    check_compiled(family, dense, early=blocks, late=blocks)


@pytest.mark.cell("Compilation", "the whole transformer compiled with fullgraph=True, one graph more than stock")
def test_whole_transformer(family, dense):
    if family.name == "mochi":
        refuse_full_graph(family, dense)
    # Around a whole transformer the hook that reads the grid is a graph of its own.
    check_compiled(family, dense, early=wrapper, late=module, more_graphs=1)


def refuse_full_graph(family, dense):
    with pytest.raises(RuntimeError, match="data-dependent"):
        check_compiled(family, dense, early=wrapper, late=module, more_graphs=1)
    restart()
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles(**SETTINGS)):
        eager = family.run(pipe)
        pipe.transformer.compile(backend="eager")
        assert close(family.run(pipe), eager)
    refused("the text mask is read in Python, which torch does not compile in one graph: leave out fullgraph=True")


def check_compiled(family, dense, early, late, more_graphs=0):
    """Compiled before `enable` and after it: equal to eager, and neither a second run nor another prompt compiles anew.

    Args:
        family: What to build.
        dense: Latents of the stock pipeline.
        early: Compiles a pipeline before it is enabled.
        late: Compiles one that is enabled.
        more_graphs: For each transformer, graphs beyond those of the stock model.
    """
    restart()
    compiled = family.build()
    stock_graphs = graphs_of_stock(family, compiled, early)
    pipe = family.build()
    with fastdit.enable(pipe, small_tiles(**SETTINGS)) as session:
        eager = [family.run(pipe, **prompt) for prompt in PROMPTS]
        reasons = session.stats.dense_reasons()
    expected = stock_graphs + more_graphs * len(transformers(pipe))
    for late_one, pipe in ((None, compiled), (late, family.build())):
        restart()
        with fastdit.enable(pipe, small_tiles(**SETTINGS)) as session:
            if late_one is not None:
                late_one(pipe)
            for prompt, latents in zip(PROMPTS, eager, strict=True):
                assert close(family.run(pipe, **prompt), latents)
                assert session.stats.dense_reasons() == reasons
            assert counters["stats"]["unique_graphs"] == expected
    assert close(family.run(compiled), dense)


def graphs_of_stock(family, pipe, turn_on):
    try:
        turn_on(pipe)
        family.run(pipe)
    except (ValueError, RuntimeError) as error:
        not_applicable(f"the stock pipeline fails with {type(error).__name__}")
    return counters["stats"]["unique_graphs"]


def restart():
    torch._dynamo.reset()
    counters.clear()
