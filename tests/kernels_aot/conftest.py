"""This folder runs in a process of its own, see tests/kernels/test_triton_suites.py: Triton must not be interpreting.

python -m pytest tests/kernels_aot                     the subset of CI
python -m pytest tests/kernels_aot --all-rows          every row of the table
python -m pytest tests/kernels_aot --all-rows --write-golden    and note registers and shared memory anew
"""

import os
import sys
from pathlib import Path

assert os.environ.get("TRITON_INTERPRET") != "1", "run this folder without TRITON_INTERPRET"
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption("--all-rows", action="store_true", help="compile every row of the table, not a subset")
    parser.addoption("--write-golden", action="store_true", help="write registers and shared memory to golden/")
