"""The pipeline tests again, on the oldest Diffusers that the metadata allows."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAMILIES = [
    f"tests/pipelines/test_{family}.py"
    for family in ("wan", "wan_variants", "ltx", "cogvideox", "mochi", "hunyuan_video", "hunyuan_video15")
]


@pytest.mark.slow
def test_the_pipelines_work_on_the_oldest_supported_diffusers(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floor = next(line for line in project["dependencies"] if line.startswith("diffusers>="))
    oldest = floor.replace(">=", "==") + ".0"
    patient = ["--retries=10", "--timeout=60"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *patient, "--target", str(tmp_path)]
    subprocess.run([*pip, "--no-deps", oldest], check=True, capture_output=True)
    # What that release needs and newer ones no longer bring along.
    subprocess.run([*pip, "httpx"], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ask = [sys.executable, "-c", "import diffusers; print(diffusers.__version__)"]
    assert subprocess.check_output(ask, env=environment, text=True).strip() == oldest.split("==")[1]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FAMILIES]
    result = subprocess.run(tests, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
