"""Runs under the interpreter that has the official package: standard library and `vbench` only, JSON in, JSON out.

    python worker.py REQUEST.json ANSWER.json

Standard output and error are the official package's own; the answer goes to its file. Kept to the syntax of Python
3.8, which the package supports. Nothing else of this project is imported here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import shutil
import sys
import traceback
from typing import Any


def main() -> int:
    """Do what the request says; 0 when the answer was written."""
    # The folder of this file is on the path, and its modules would shadow others of the same name.
    sys.path.pop(0)
    request_path, answer_path = sys.argv[1:3]
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    try:
        answer = {"doctor": doctor, "run": run}[request["action"]](request)
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    return 0


def doctor(request: dict[str, Any]) -> dict[str, Any]:
    """Versions, the suite inside the package, and for every dimension what cannot be imported or is not on disk."""
    answer: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "cache": cache_folder(),
        "ffmpeg": shutil.which("ffmpeg"),
        "modules": {name: import_error(name) for name in ("vbench", "torch", "torchvision", "decord", "cv2", "numpy")},
        "vbench": version("vbench"),
        "torch": version("torch"),
        "dimensions": {},
    }
    answer["suite"] = packaged_suite() if answer["modules"]["vbench"] is None else None
    answer["cuda"] = answer["modules"]["torch"] is None and importlib.import_module("torch").cuda.is_available()
    for name, needs in request["dimensions"].items():
        answer["dimensions"][name] = {
            "import_error": import_error("vbench." + name),
            "networks": {network: os.path.isfile(network_path(network)) for network in needs["networks"]},
        }
    return answer


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Evaluate one dimension; returns versions and the hashes of the weights that it read."""
    torch, vbench = importlib.import_module("torch"), importlib.import_module("vbench")
    hashes = {network: sha256_of(network_path(network)) for network in request["networks"]}
    # A device object, never a string: with a string the package changes how it computes.
    judge = vbench.VBench(torch.device(request["device"]), request["suite"], request["output"])
    judge.evaluate(
        videos_path=request["videos"],
        name=request["name"],
        dimension_list=[request["dimension"]],
        mode=request["mode"],
        local=True,
        imaging_quality_preprocessing_mode="longer",
    )
    return {
        "vbench": version("vbench"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "weights_sha256": hashes,
    }


def cache_folder() -> str:
    """Where the package looks for weights."""
    return os.environ.get("VBENCH_CACHE_DIR") or os.path.join(os.path.expanduser("~"), ".cache", "vbench")


def network_path(network: str) -> str:
    """File of a network: below the package's cache, or with `torch:` below that of torch.hub."""
    if network.startswith("torch:"):
        home = os.environ.get("TORCH_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "torch")
        return os.path.join(home, "hub", network[len("torch:") :])
    return os.path.join(cache_folder(), network)


def packaged_suite() -> str | None:
    """The prompt suite that the package brings, if it does."""
    folder = os.path.dirname(importlib.import_module("vbench").__file__ or "")
    path = os.path.join(folder, "VBench_full_info.json")
    return path if os.path.isfile(path) else None


def import_error(name: str) -> str | None:
    """Why a module cannot be imported, or `None`."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def version(package: str) -> str | None:
    """Installed version, or `None`."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def sha256_of(path: str) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
