"""Python in the README and the documentation: run, or its names looked up where it needs weights or a GPU."""

import ast
import importlib
import inspect
import sys
from types import ModuleType

import pytest
import torch
from documented import all_blocks

import fastdit

BLOCKS = [block for block in all_blocks() if block.language == "python"]
FRAMES, HEIGHT, WIDTH = 4, 8, 16


@pytest.fixture
def names(make_wan, rng):
    """What the blocks take as given: a pipeline, tensors of one attention call, and a table of tiles."""
    tokens = FRAMES * HEIGHT * WIDTH
    query, key, value = (torch.randn(1, 2, tokens, 32, generator=rng) for _ in range(3))
    keep = torch.rand(1, 2, tokens // 128, tokens // 64, generator=rng) < 0.5
    keep[..., 0] = True
    sizes = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    tensors = {"query": query, "key": key, "value": value, "keep": keep}
    return {"__name__": "documented", "fastdit": fastdit, "pipe": make_wan(), **sizes, **tensors}


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.marker], ids=str)
def test_a_block_runs(block, names, monkeypatch):
    # Dataclasses look their module up by its name.
    monkeypatch.setitem(sys.modules, "documented", ModuleType("documented"))
    exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.marker], ids=str)
def test_a_block_that_cannot_run_here_names_what_exists(block):
    check_names(ast.parse(block.text))


def check_names(tree):
    """Imports, attributes of `fastdit`, and arguments of its calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastdit":
            assert node.attr in fastdit.__all__, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fastdit."):
            function = getattr(fastdit, ast.unparse(node.func).split(".")[1])
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            target = function.find_plan if inspect.ismodule(function) else function
            inspect.signature(target).bind_partial(*([None] * len(node.args)), **given)


@pytest.mark.parametrize(
    "text",
    [
        "fastdit.enabel(pipe)",
        "fastdit.enable(pipe, colour=1)",
        "from fastdit import enabel",
        "import fastdit; fastdit.Schedule(dense_step=1)",
        "fastdit.Schedule(steps=1)",
    ],
)
def test_the_check_itself_finds_faults(text):
    with pytest.raises((AssertionError, AttributeError, ImportError, TypeError)):
        check_names(ast.parse(text))
