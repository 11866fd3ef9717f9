"""One sitting on a machine with a GPU, in under ten minutes: correctness, kernels, whole transformer calls.

    python kernels/bench/gpu_session.py OUT              # on the GPU; JSON files in OUT
    python kernels/bench/gpu_session.py OUT --dry-run    # print the commands
    python kernels/bench/gpu_session.py OUT --cpu        # the same path on a CPU, shrunken

Every part is a command of its own with a limit of its own, the surest results first; what comes to grief or runs out
of time is noted in OUT/session.json and the next part begins.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FASTDIT = [sys.executable, "-m", "fastdit.cli"]
SHAPES = ("Wan2.1-14B 720x1280x81", "CogVideoX-5B 480x720x49", "HunyuanVideo 720x1280x129")
# Model and size, in order of what is wanted most.
MODELS = (
    ("wan-1.3b", "480p"),
    ("wan-14b", "720p"),
    ("cogvideox-5b", "480p"),
    ("hunyuan-video", "720p"),
    ("hunyuan-video-1.5", "720p"),
    ("wan-14b", "480p"),
)


def parts(out: Path, cpu: bool) -> list[tuple[str, list[str], int]]:
    """Name, command and limit in seconds of every part."""
    device = "cpu" if cpu else "cuda"
    checks = ["--device", device, "--implementation", "torch" if cpu else "triton"]
    checks += ["--head-dims", *(("32",) if cpu else ("64", "128"))]
    found = [
        ("doctor", [*FASTDIT, "doctor", "--json"], 60),
        (
            "correctness",
            [sys.executable, "-m", "fastdit_kernels.kernel_checks", *checks, "--output", f"{out}/correctness.json"],
            220,
        ),
    ]
    small = (
        ["--quick", "--tokens", "2048", "--methods", "adaptive"]
        if cpu
        else ["--repeats", "1", "--densities", "0.1", "--methods", "adaptive", "pyramid", "cached"]
    )
    steps, timings = [], []
    for model, size in MODELS[:1] if cpu else MODELS:
        chosen = ["--models", model, "--resolution", size, "--device", device, "--output", f"{out}/e2e-{model}-{size}"]
        steps.append((f"e2e-{model}-{size}", [*FASTDIT, "bench", "e2e", *chosen, *small], 150))
    kernels = [*FASTDIT, "bench", "kernels", "--quick", "--device", device, "--repeats", "3"]
    for shape in SHAPES[:1] if cpu else SHAPES:
        name = "kernels-" + shape.split()[0].lower()
        chosen = [] if cpu else ["--shapes", shape]
        timings.append((name, [*kernels, *chosen, "--output", f"{out}/{name}"], 75))
    return [*found, *timings[:1], *steps[:2], *timings[1:], *steps[2:]]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line, or of `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0)
    return parser.parse_args(words)


def main() -> int:
    """Run all parts; returns 1 if one failed."""
    options = parse_arguments()
    packages = [ROOT, *(ROOT / room for room in ("kernels", "pipelines", "eval", "ui"))]
    path = os.pathsep.join([*map(str, packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    options.out.mkdir(parents=True, exist_ok=True)
    begin, session = time.monotonic(), []
    for name, command, limit in parts(options.out.resolve(), options.cpu):
        left = options.minutes * 60 - (time.monotonic() - begin)
        seconds = min(limit, left)
        sys.stdout.write(f"{name} (at most {seconds:.0f} s): {' '.join(command)}\n")
        sys.stdout.flush()
        if options.dry_run:
            continue
        start = time.monotonic()
        log = options.out / f"{name}.log"
        with log.open("w") as file:
            try:
                if left < 10:
                    raise subprocess.TimeoutExpired(command, seconds)
                code = subprocess.run(
                    command, env=environment, cwd=ROOT, timeout=seconds, stdout=file, stderr=subprocess.STDOUT
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        session.append({"part": name, "exit_code": code, "seconds": time.monotonic() - start, "command": command[1:]})
        (options.out / "session.json").write_text(json.dumps(session, indent=2) + "\n")
        outcome = "out of time" if code is None else "done" if code == 0 else f"failed ({code}), see {log}"
        sys.stdout.write(f"  {outcome}\n")
    return int(any(part["exit_code"] != 0 for part in session))


if __name__ == "__main__":
    raise SystemExit(main())
