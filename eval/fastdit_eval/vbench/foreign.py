"""Calling `worker.py` under the interpreter that has the official package."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit_eval.vbench.dimensions import DIMENSIONS
from fastdit_eval.vbench.files import VBenchError

WORKER = Path(__file__).with_name("worker.py")
LAST_LINES = 8


def call_worker(python: Path, request: dict[str, Any], cache: Path | None, log: Path | None = None) -> dict[str, Any]:
    """Run the worker on a request.

    Args:
        python: Interpreter of the environment that has `vbench`.
        request: With `action`; plain data.
        cache: Folder of weights, as `VBENCH_CACHE_DIR`; default the package's own.
        log: File for what the package prints.

    Raises:
        ConfigError: The interpreter cannot be started.
        VBenchError: The worker died or reported an error; the message has its last lines.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if cache is not None:
        environment["VBENCH_CACHE_DIR"] = str(cache.absolute())
    if request.get("dimension") == "motion_smoothness":
        # The package reads this official checkpoint without saying weights_only=False, which torch 2.6 needs.
        environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    with tempfile.TemporaryDirectory(prefix="fastdit-vbench-") as folder:
        question, reply = Path(folder, "request.json"), Path(folder, "answer.json")
        question.write_text(json.dumps(request))
        try:
            done = subprocess.run(
                [str(python), str(WORKER), str(question), str(reply)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise ConfigError(
                f"vbench_python={str(python)!r} cannot be started ({error.strerror}): give the python of an "
                "environment that has the package vbench"
            ) from error
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(done.stdout)
        answer: dict[str, Any] = json.loads(reply.read_text()) if reply.exists() else {}
    if done.returncode or not answer or "error" in answer:
        tail = " | ".join(done.stdout.strip().splitlines()[-LAST_LINES:])
        raise VBenchError(f"the official package failed: {answer.get('error', f'exit {done.returncode}')}; {tail}")
    return answer


def examine(python: Path, cache: Path | None) -> dict[str, Any]:
    """What an interpreter can do: versions, and for every dimension whether it runs without a network.

    Returns:
        The worker's answer; each of `dimensions` with `ready` (it runs offline) and `needs` (what is missing).
    """
    needs = {name: {"networks": list(item.networks)} for name, item in DIMENSIONS.items()}
    answer = call_worker(python, {"action": "doctor", "dimensions": needs}, cache)
    for found in answer["dimensions"].values():
        missing = [network for network, there in found["networks"].items() if not there]
        found["needs"] = missing if found["import_error"] is None else [found["import_error"], *missing]
        found["ready"] = not found["needs"]
    return answer
