"""The documentation site: builds without a warning, has every page and every public name."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastdit
import fastdit_kernels

ROOT = Path(__file__).parents[2]
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="mkdocs-material and mkdocstrings-python are not installed: pip install 'fastdit[docs]'",
)
# Names that another page has, or that are no objects.
SHOWN_ELSEWHERE = {
    fastdit: {"__version__", "search", "PipelineAdapter"},
    fastdit_kernels: {"FastDitError", "InvalidInputError", "KernelUnavailableError"},
}


def build(target):
    # An empty environment: the configuration alone says where the sources are. Quiet runs do not count warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    result = build(target)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stderr
    return target


@needs_mkdocs
def test_the_site_has_every_page_and_nothing_from_elsewhere(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]+)"', path.read_text())
        assert not loaded, f"{path.name} loads {loaded}"


@needs_mkdocs
def test_the_reference_shows_signatures_and_docstrings(site):
    text = re.sub(r"<[^>]+>", "", (site / "api" / "fastdit.html").read_text())
    for part in (
        "refresh_every",
        "Share of the estimated mass to keep",
        "AlreadyEnabledError",
        "Tokens are in raster order",
    ):
        assert part in text, part


def test_the_reference_lists_all_public_names():
    shown = set(re.findall(r"^::: (\S+)$", "".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md")), re.M))
    assert {"fastdit.search.find_plan.find_plan", "fastdit.PipelineAdapter"} <= shown
    for package, elsewhere in SHOWN_ELSEWHERE.items():
        missing = {f"{package.__name__}.{name}" for name in set(package.__all__) - elsewhere} - shown
        assert not missing, missing


def test_links_of_the_readme_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        paths = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text) + re.findall(
            r"`((?:docs|kernels|pipelines|tests)/[^`*]+)`", text
        )
        assert not [path for path in paths if not (ROOT / path).exists()], page


def test_pictures_are_made_by_their_script(tmp_path):
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "pictures" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.main(["tiles", "cut", "density", "promises", "--output", str(tmp_path)])
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("tiles", "cut", "density"))
    mask, density, _ = draw.attend(fastdit.PyramidConfig(density=0.1, order="gilbert", **draw.TILES))
    levels = draw.token_levels(mask)
    assert (levels >= 0).double().mean().item() == pytest.approx(mask.coverage())
    # A tile costs the same at every level and covers twice the tokens of the level below.
    cost = sum(((levels == level).sum() / 2**level).item() for level in range(6)) / levels.numel()
    assert cost == pytest.approx(density)


def messages():
    """Texts of all string literals of the packages, `...` for what is filled in."""
    for folder in ("fastdit", "kernels/fastdit_kernels", "pipelines/fastdit_pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_errors_of_the_troubleshooting_page_are_real():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    shown = re.findall(r"^\| `([^`]+)` ", page, re.M)
    assert len(shown) > 15
    found = list(messages())
    for text in shown:
        pattern = re.compile(".*".join(map(re.escape, text.split("..."))), re.S)
        assert any(map(pattern.search, found)), text
    named = set(re.findall(r"`(\w+Error)`", page)) - {"FastDitError"}
    assert named <= set(fastdit.__all__)


@needs_mkdocs
def test_a_fault_in_the_pages_is_found(tmp_path):
    (tmp_path / "index.md").write_text("# Title\n\n[nowhere](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\ndocs_dir: {tmp_path}/docs\nstrict: true\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "index.md").rename(tmp_path / "docs" / "index.md")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(tmp_path / "mkdocs.yml")]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 1
