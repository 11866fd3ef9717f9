"""docs/compatibility.md as data: read, written, and the outcomes of the tests that it is made from."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "compatibility.md"
GROUPS = (
    "Results",
    "Calls",
    "Lifecycle",
    "Weights",
    "Offloading",
    "Caches",
    "Compilation",
    "Context parallelism",
)

INTRODUCTION = """# What fastdit works with

Every cell is a test in `tests/pipelines/compatibility`, run on a tiny random pipeline of the family. The tests fail if
an outcome differs from this page; `pytest tests/pipelines/compatibility --write-compatibility` writes it anew.

- **pass**: works, as the test of that name says in detail.
- **refused**: fastdit raises an error that says what to do instead.
- **not applicable**: the family does not have the feature, or fails with it without fastdit too.

CUDA graphs, as in `torch.compile(mode="reduce-overhead")`, replay kernels without asking fastdit again: masks and dense
steps would freeze at what they were when the graph was recorded. Use the default mode.
"""

# (group, check, family) -> outcome, as the cell reads.
Cells = dict[tuple[str, str, str], str]


class CellEnded(Exception):
    """Raised by a test to end with an outcome other than "pass"."""


def refused(reason: str) -> NoReturn:
    """End the test: fastdit refuses the combination, which the test has seen."""
    raise CellEnded(f"refused: {reason}")


def not_applicable(reason: str) -> NoReturn:
    """End the test: there is nothing to be compatible with."""
    raise CellEnded(f"not applicable: {reason}")


def list_checks() -> Iterator[tuple[str, str]]:
    """`(group, check)` of every test with the marker, read from the source, in the order of the document."""
    found = []
    for path in sorted((ROOT / "tests" / "pipelines" / "compatibility").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.cell":
                group, check = (ast.literal_eval(argument) for argument in node.args)
                found.append((group, check))
    return iter(sorted(found, key=lambda place: GROUPS.index(place[0])))


def read_cells(path: Path = DOCUMENT) -> Cells:
    """The cells of the document; none if it does not exist."""
    cells: Cells = {}
    group, families = "", []
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("## "):
            group, families = line[3:], []
        elif line.startswith("|") and not line.startswith("|---"):
            first, *rest = (part.strip() for part in line.strip("|").split("|"))
            if not families:
                families = rest
            else:
                cells.update({(group, first, family): cell for family, cell in zip(families, rest, strict=True)})
    return cells


def write_cells(cells: Cells, titles: list[str], path: Path = DOCUMENT) -> None:
    """Write the document, with empty cells for what is not known.

    Groups and checks keep the order in which they come, families that of `titles`.
    """
    lines = [INTRODUCTION]
    for group in dict.fromkeys(group for group, _, _ in cells):
        lines += [f"## {group}", "", f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
        for check in dict.fromkeys(check for own, check, _ in cells if own == group):
            row = [cells.get((group, check, title), "") for title in titles]
            lines.append(f"| {check} | {' | '.join(row)} |")
        lines.append("")
    path.write_text("\n".join(lines))
