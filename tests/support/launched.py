"""`fastdit` words under `accelerate launch` with two processes on a CPU."""

import os
import subprocess
import sys

# Of a CPU --multi_gpu starts processes as well; --cpu wants MPI.
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]
LAUNCH += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
LAUNCH += ["--num_cpu_threads_per_process=1", "-m", "fastdit.cli"]


def run_in_two_processes(*words):
    """What `fastdit <words>` prints when two processes share the work; it must succeed."""
    done = subprocess.run(
        [sys.executable, *LAUNCH, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
