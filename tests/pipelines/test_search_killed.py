"""SIGKILL at any moment: a resumed search gives the plan of an uninterrupted one, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "support" / "killed_search.py"


def test_a_search_killed_again_and_again_ends_with_the_same_plan(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 4
    killed, whole = ((tmp_path / name / "plan.json").read_bytes() for name in ("killed", "whole"))
    assert killed == whole
