"""What the README and the documentation show: fenced blocks, commands, and commands inside sentences.

A comment on the line before a fence says what the block is: `<!-- needs: weights -->`, `<!-- needs: gpu -->` or
`<!-- needs: vbench -->` for blocks that cannot run here, `<!-- excerpt -->` for a piece of code that is no program.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MARKERS = {"needs: weights", "needs: gpu", "needs: vbench", "excerpt"}
OPENING = re.compile(r"^(?P<indent> *)```(?P<language>\S*)(?P<rest>.*)$")
COMMENT = re.compile(r"^<!-- (.*) -->$")
SPAN = re.compile(r"`((?:fastdit|python|pytest|make|pip|accelerate) [^`]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: Relative to the root.
        line: Number of its first line.
        language: After the fence.
        marker: What the comment before it says, or nothing.
        text: Contents.
    """

    page: str
    line: int
    language: str
    marker: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def read_blocks(text, page="page.md"):
    """Fenced blocks of a page."""
    lines, found, start = text.split("\n"), [], None
    for number, line in enumerate(lines):
        opening = OPENING.match(line)
        if start is None and opening:
            before = COMMENT.match(lines[number - 1].strip()) if number else None
            start, language, marker = number + 1, opening["language"], before[1] if before else ""
        elif start is not None and line.strip() == "```":
            found.append(Block(page, start + 1, language, marker, "\n".join(lines[start:number])))
            start = None
    assert start is None, f"{page}:{start}: a block without an end"
    return found


def all_blocks():
    """Fenced blocks of all pages."""
    return [block for page in PAGES for block in read_blocks(page.read_text(), str(page.relative_to(ROOT)))]


def read_commands(text):
    """Commands of a shell block as words; comments are left out, lines that end with a backslash go on."""
    lines = text.replace("\\\n", " ").split("\n")
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_in_sentences():
    """`(page, words)` of every code span that starts with a program."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in read_blocks(text):
            text = text.replace(block.text, "")
        for span in SPAN.findall(text):
            found.append((str(page.relative_to(ROOT)), shlex.split(" ".join(span.split()))))
    return found


def indented_blocks(text):
    """First lines of code blocks without a fence, whose language nobody knows."""
    fenced = {
        line for block in read_blocks(text) for line in range(block.line - 1, block.line + block.text.count("\n") + 1)
    }
    lines = text.split("\n")
    return [
        line
        for number, line in enumerate(lines)
        if number + 1 not in fenced
        and line.startswith("    ")
        and number
        and not lines[number - 1].strip()
        and not lines[number - 2].lstrip().startswith((":::", "-", "1."))
    ]
