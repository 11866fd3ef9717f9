"""Runs the Triton kernels of the operators on CPU: the interpreter is chosen by the environment of a process."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "kernels_interpreter"


def test_operators_in_the_triton_interpreter():
    files = sorted(str(path) for path in FOLDER.glob("test_operators_*.py"))
    assert files
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=--import-mode=importlib",
            *files,
        ],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
