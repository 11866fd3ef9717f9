"""What a kernel was timed on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit, as plain data; what cannot be found out is `None`."""
    on_cuda = device.type == "cuda"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    load = os.getloadavg() if hasattr(os, "getloadavg") else (None,)
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else _cpu_name(),
        "device_type": device.type,
        "driver": _output(query) if on_cuda else None,
        "cuda": torch.version.cuda if on_cuda else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Above 1 per busy thread of ours: others shared the machine.
        "load_average": load[0],
        "commit": _output(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]),
    }


def machine_line(environment: Mapping[str, Any], *, with_load: bool = False) -> str:
    """Device, threads and version of torch in words, for under a table or a plot.

    Args:
        environment: By `describe_machine`.
        with_load: Also say how busy the machine was.
    """
    line = f"{environment['device']}, {environment['threads']} thread(s), torch {environment['torch']}"
    if not with_load:
        return line
    load = environment["load_average"]
    return f"{line}, load average {'unknown' if load is None else f'{load:.1f}'}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _output(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None
