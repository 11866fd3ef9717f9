"""The distribution: sdist, wheel built from it, installed where nothing of the checkout is visible."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["fastdit", "fastdit_eval", "fastdit_kernels", "fastdit_pipelines", "fastdit_ui"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """`python -m build` makes the sdist, then the wheel out of the sdist."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(list(target.glob("*.tar.gz"))) == 1
    return next(target.glob("*.whl"))


def test_the_wheel_has_exactly_five_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = sorted({name.split("/")[0] for name in names if ".dist-info" not in name})
    assert tops == PACKAGES
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_the_wheel_carries_the_bundled_model(wheel):
    members = zipfile.ZipFile(wheel).infolist()
    weights = [member for member in members if "/tiny/weights/" in member.filename]
    assert sum(member.filename.endswith(".safetensors") for member in weights) == 3
    assert sum(member.file_size for member in weights) <= 25e6


def test_every_package_imports_from_another_directory(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=clean, capture_output=True)
    site = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    # The dependencies are lent by a plain path line: .pth files behind it, our editable install's too, stay unread.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = (
        "import importlib, json, fastdit;"
        f"modules = [importlib.import_module(name) for name in {PACKAGES}];"
        "from fastdit.adapters import load_adapters;"
        "print(json.dumps([[m.__file__ for m in modules], [a.family for a in load_adapters()]]))"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    output = subprocess.check_output([python, "-c", script], cwd=elsewhere, env=clean, text=True)
    files, families = json.loads(output)
    assert all(Path(file).is_relative_to(site) for file in files)
    assert families == ["wan"]
    program = tmp_path / "env" / "bin" / "fastdit"
    assert subprocess.check_output([program, "--version"], cwd=elsewhere, env=clean, text=True).strip() == "0.1.0"


def test_importing_the_core_loads_neither_diffusers_nor_triton():
    script = (
        "import sys, fastdit, fastdit_kernels;"
        "print([name for name in ('diffusers', 'transformers', 'triton') if name in sys.modules])"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.strip() == "[]"
