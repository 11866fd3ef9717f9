"""The recipes need weights and a GPU; here only that each explains itself, at once and without a network."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "pipelines" / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_help_needs_nothing(recipe):
    # Isolated from installed packages: whatever the recipe needs comes after the command line.
    command = [sys.executable, "-I", "-S", str(recipe), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--density" in result.stdout
    assert "--offload" in result.stdout
