"""Who may import whom: reads the import statements of every module."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "fastdit_kernels": ROOT / "kernels" / "fastdit_kernels",
    "fastdit": ROOT / "fastdit",
    "fastdit_pipelines": ROOT / "pipelines" / "fastdit_pipelines",
    "fastdit_eval": ROOT / "eval" / "fastdit_eval",
    "fastdit_ui": ROOT / "ui" / "fastdit_ui",
}
# What each room may import, besides itself and the standard library.
MAY_IMPORT = {
    "fastdit_kernels": {"torch", "triton"},
    "fastdit": {"fastdit_kernels", "torch", "numpy", "pydantic", "scipy", "skimage", "tqdm"},
    "fastdit_pipelines": {
        "fastdit",
        "accelerate",
        "diffusers",
        "transformers",
        "torch",
        "numpy",
        "tqdm",
        "cyclopts",
        "skimage",
        "imageio",
    },
    "fastdit_eval": {
        "fastdit",
        "fastdit_kernels",
        "numpy",
        "scipy",
        "skimage",
        "matplotlib",
        "torch",
        "imageio",
        "imageio_ffmpeg",
        "torchmetrics",
        "lpips",
        "cv2",
        "jinja2",
        "tqdm",
    },
    # Frames are arrays; plots and pictures of patches are drawn here.
    "fastdit_ui": {"fastdit", "fastdit_eval", "gradio", "numpy", "matplotlib", "PIL"},
}
# The command line is the one place that brings the rooms together, and only when a command is called.
CLI_MAY_IMPORT = {"cyclopts", "rich"}
CLI_MAY_IMPORT_LAZILY = {"fastdit_pipelines", "fastdit_eval", "fastdit_ui", "accelerate"}
# Inside the heart, lowest floor first; a module imports from lower floors or its own.
FLOORS = [
    {"errors", "validation", "environment", "whole_files"},
    {"grid"},
    {"orders", "attention_profile", "recall", "fidelity", "spans"},
    {"selectors"},
    {"schedule", "config"},
    {"plan", "plan_config", "plan_reading", "plan_tables"},
    {
        "clock",
        "mask_cache",
        "mask_reuse",
        "packed_mask",
        "order_trials",
        "key_orders",
        "head_groups",
        "step_result",
        "run_memory",
        "statistics",
        "compensation",
        "attend",
        "compiled",
        "guard",
        "ragged_text",
        "layer_slot",
        "session",
        "report",
    },
    {"adapters"},
    {"api", "sparse_attention"},
    {"probe", "capture", "recorded_call", "recorder", "recorded_run"},
    {"search"},
    {"forecast", "gain_forecast"},
    {"__init__"},
    {"cli"},
]


def imports(path):
    """`(module, names, inside a function)` of every import that runs, i.e. not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    lazy, typing_only = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lazy |= set(ast.walk(node))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            typing_only |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, node in lazy


def violations(package, path, source_root):
    part = path.relative_to(source_root).parts[0]
    in_cli = package == "fastdit" and part == "cli"
    for module, lazy in imports(path):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top == package:
            continue
        allowed = MAY_IMPORT[package] | (CLI_MAY_IMPORT if in_cli else set())
        if top not in allowed and not (in_cli and lazy and top in CLI_MAY_IMPORT_LAZILY):
            yield f"{path.name} imports {module}"
        if top == "triton" and not lazy and "triton" not in path.name:
            yield f"{path.name} imports triton at the top"


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_what_they_may(package):
    root = PACKAGES[package]
    found = [text for path in sorted(root.rglob("*.py")) for text in violations(package, path, root)]
    assert not found, found


def test_the_heart_is_built_in_floors():
    rank = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    root = PACKAGES["fastdit"]
    found = []
    for path in sorted(root.rglob("*.py")):
        part = path.relative_to(root).parts[0].removesuffix(".py")
        assert part in rank, f"{part} has no floor: add it to FLOORS"
        for module, lazy in imports(path):
            if module.split(".")[0] != "fastdit" or lazy:
                continue
            target = module.split(".")[1] if "." in module else "__init__"
            if rank[target] > rank[part]:
                found.append(f"{part} imports {target}")
    assert not found, found


def test_other_rooms_use_public_modules_only():
    """Nobody reaches for a private name of another package."""
    for package, root in PACKAGES.items():
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES.keys() - {
                    package
                }:
                    assert not [alias.name for alias in node.names if alias.name.startswith("_")], path


@pytest.mark.parametrize(
    ("text", "package", "fault"),
    [
        ("import diffusers", "fastdit", True),
        ("def f():\n    import fastdit_eval", "fastdit", True),
        ("from fastdit import enable", "fastdit_kernels", True),
        ("import triton", "fastdit_kernels", True),
        ("import torch, math", "fastdit", False),
    ],
)
def test_the_check_itself_finds_violations(tmp_path, text, package, fault):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert bool(list(violations(package, path, tmp_path))) == fault


@pytest.mark.parametrize("folder", ["kernels", "pipelines", "eval", "ui", "tests"])
def test_plain_folders_are_not_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_public_names_are_listed_and_sorted():
    import fastdit
    import fastdit_kernels

    for package in (fastdit, fastdit_kernels):
        assert package.__all__ == sorted(package.__all__)
        assert all(hasattr(package, name) for name in package.__all__)


def test_files_and_functions_stay_readable():
    for root in PACKAGES.values():
        for path in root.rglob("*.py"):
            text = path.read_text()
            assert len(text.splitlines()) <= 300, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    body = node.body[1:] if ast.get_docstring(node) else node.body
                    length = (node.end_lineno - body[0].lineno + 1) if body else 0
                    # A GPU kernel is compiled as a whole; the compiler passes it needs do not all see through calls.
                    decorators = map(ast.unparse, node.decorator_list)
                    is_kernel = any(decorator.startswith("triton.jit") for decorator in decorators)
                    assert length <= (80 if is_kernel else 50), f"{path.name}: {node.name} has {length} lines"
