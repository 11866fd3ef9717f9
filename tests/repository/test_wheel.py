"""The distribution: sdist, wheel built from it, installed where nothing of the checkout is visible."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
PACKAGES = ["fastdit", "fastdit_eval", "fastdit_kernels", "fastdit_pipelines", "fastdit_ui"]
FOLDERS = [ROOT, ROOT / "eval", ROOT / "kernels", ROOT / "pipelines", ROOT / "ui"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Seconds of CPU time that importing fastdit may take above torch.
IMPORT_SECONDS = 2.0


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


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel, tmp_path):
    archive = zipfile.ZipFile(wheel)
    packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(folder))
        for folder, package in zip(FOLDERS, PACKAGES, strict=True)
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == ours
    for name in (name for name in packed if name.endswith(".safetensors")):
        archive.extract(name, tmp_path)
        with safe_open(tmp_path / name, "pt") as tensors:
            assert len(tensors.keys()) > 10, name


def test_the_metadata_say_what_is_true(wheel):
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert {"eval", "metrics", "docs", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    # Names with a space or an address would not be accepted by an index.
    assert not [line for line in metadata.get_all("Requires-Dist") if "@" in line]


def test_what_developers_install_serves_all_tests():
    """The extra of developers has everything of the extras whose parts tests use, in the same versions."""
    extras = PROJECT["optional-dependencies"]
    assert set(extras["eval"]) | set(extras["docs"]) <= set(extras["dev"])


def test_twine_accepts_both_files(wheel):
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed: pip install 'fastdit[dev]'")
    files = [str(wheel), str(next(wheel.parent.glob("*.tar.gz")))]
    result = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_the_sdist_has_what_tests_and_pages_need(wheel):
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml"}
    assert wanted | {"docs/index.md", "docs/compare.png", "tests/conftest.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "demo/", "site/"))]


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
    assert families == ["cogvideox", "hunyuan_video", "hunyuan_video15", "ltx", "mochi", "wan"]
    program = tmp_path / "env" / "bin" / "fastdit"
    assert subprocess.check_output([program, "--version"], cwd=elsewhere, env=clean, text=True).strip() == "0.1.0"


def test_importing_the_core_loads_no_package_that_it_may_not_need():
    script = (
        "import sys, fastdit, fastdit_kernels;"
        "print([name for name in ('diffusers', 'transformers', 'triton', 'scipy.stats') if name in sys.modules])"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.strip() == "[]"


def test_importing_the_package_takes_two_seconds_above_torch():
    # CPU time of this process, which neighbours on the machine cannot stretch as they do the clock.
    script = (
        "import time, torch; start = time.process_time(); import fastdit, fastdit_kernels;"
        "print(time.process_time() - start)"
    )
    seconds = [float(subprocess.check_output([sys.executable, "-c", script], text=True)) for _ in range(2)]
    assert min(seconds) <= IMPORT_SECONDS, seconds


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_all_sources_compile_on_newer_pythons(version):
    script = (
        "import pathlib;"
        "[compile(path.read_text(), str(path), 'exec') for folder in ('fastdit', 'kernels', 'pipelines', 'eval', 'ui')"
        " for path in pathlib.Path(folder).rglob('*.py')]"
    )
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"python{version} is not installed")
    result = subprocess.run([python, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
