"""Every command that the README and the documentation show is accepted by the real command line, and runs somewhere."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from cyclopts import CycloptsError
from documented import (
    MARKERS,
    PAGES,
    ROOT,
    all_blocks,
    commands_in_sentences,
    indented_blocks,
    read_blocks,
    read_commands,
)
from plans import make_plan

from fastdit.cli import app, main

BLOCKS = all_blocks()
SHELL = [block for block in BLOCKS if block.language in ("sh", "bash")]
COMMANDS = [(block, words) for block in SHELL for words in read_commands(block.text)]
# Run by this file, word for word.
HERE = {("doctor",), ("models",), ("plan", "show"), ("eval", "tensors")}
LIST = "docs/reproducibility.md"


def listed():
    """The table of `LIST`: the beginning of a command, as words -> the tests that run such commands."""
    section = (ROOT / LIST).read_text().split("## Commands in these pages")[1]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.M)
    return {
        tuple(command.split()): re.findall(r"`(tests/[^`]+\.py)`", where)
        for commands, where in rows
        for command in re.findall(r"`([^`]+)`", commands)
    }


def row_of(words, command):
    """The row that a command belongs to: that of a sub-command of fastdit, or the longest that begins it."""
    if command:
        return ("fastdit", *command)
    begins = [row for row in listed() if tuple(words[: len(row)]) == row]
    return max(begins, key=len, default=tuple(words))


def check(words):
    """Accept a command, or fail with what is wrong with it; its sub-command, if it is one of fastdit."""
    program = words[0].rsplit("/", 1)[-1]
    if program == "fastdit":
        return parse(words[1:])
    if program == "accelerate":
        return check_accelerate(words[1:])
    if program == "make":
        targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().split("\n") if ":" in line}
        assert set(words[1:]) <= targets, f"no such target: {words}"
    elif program == "pip":
        assert words[1] == "install"
        for extra in (word.split("[")[1].rstrip("]") for word in words if word.startswith(("fastdit[", ".["))):
            assert set(extra.split(",")) <= extras(), extra
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-")), words
    elif program == "python":
        check_python(words[1:])
    else:
        pytest.fail(f"nobody checks {words[0]!r}: add it here, or give the block another language")
    return ()


def parse(words):
    """Parse as a run would, with all values; the names of the sub-command."""
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        pytest.fail(f"fastdit {' '.join(words)}: {error}")
    return app.parse_commands(words)[0]


def check_accelerate(words):
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    options = launch_command_parser().parse_args(words[1:])
    assert (options.module, options.training_script) == (True, "fastdit.cli")
    return parse(options.training_script_args)


def check_python(words):
    if words[0] != "-m":
        path = ROOT / words[0]
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.parse_arguments(words[1:])
    elif words[1] in ("venv", "pip", "pytest"):
        if words[1] != "venv":
            check(words[1:])
    else:
        module = importlib.import_module(words[1])
        if hasattr(module, "app"):
            module.app.parse_args(words[2:], exit_on_error=False, print_error=False)
        else:
            assert callable(module.main)


def extras():
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_a_documented_command_is_accepted_and_runs_in_a_test(block, words, capsys):
    row = row_of(words, check(words))
    assert block.marker.startswith("needs:") or row in listed(), f"{block}: {LIST} does not say which test runs {row}"


@pytest.mark.parametrize(
    ("page", "words"), commands_in_sentences(), ids=lambda value: value if isinstance(value, str) else None
)
def test_a_command_in_a_sentence_names_what_exists(page, words):
    if tuple(words) in listed():
        return
    if words[0] != "fastdit":
        check(words)
        assert row_of(words, ()) in listed(), f"{page}: {LIST} does not say which test runs {' '.join(words)}"
        return
    # Every command has a help page, which Cyclopts would take for a command of its own.
    command, apps, rest = app.parse_commands([word for word in words[1:] if word != "--help"])
    assert command or words[1:] == ["--help"], f"{page}: {' '.join(words)}"
    if apps[-1].default_command is None:
        assert not rest, f"{page}: fastdit {' '.join(command)} is a group and has no {rest}"
        return
    assert ("fastdit", *command) in listed(), f"{page}: {LIST} does not say which test runs fastdit {' '.join(command)}"
    accepted = {name for argument in apps[-1].assemble_argument_collection() for name in argument.names}
    given = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert given <= accepted | {"--version"}, f"{page}: fastdit {' '.join(command)} has no {given - accepted}"


@pytest.mark.parametrize("row", listed(), ids=" ".join)
def test_the_tests_that_are_said_to_run_a_command_do(row):
    for path in listed()[row]:
        source = (ROOT / path).read_text()
        if row[0] == "fastdit":
            assert row[1:] in HERE if path.endswith(Path(__file__).name) else f'"{row[-1]}"' in source, path
    assert row[0] != "fastdit" or listed()[row]


def test_every_command_of_fastdit_is_listed():
    def leaves(group):
        for name in app.parse_commands(list(group))[1][-1]:
            if not name.startswith("-"):
                _, apps, _ = app.parse_commands([*group, name])
                yield from leaves((*group, name)) if apps[-1].default_command is None else [(*group, name)]

    assert {row[1:] for row in listed() if row[0] == "fastdit"} == set(leaves(()))


QUICK = sorted(
    {tuple(words[1:]) for _, words in COMMANDS if words[0] == "fastdit" and app.parse_commands(words[1:])[0] in HERE}
)


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_quick_documented_command_runs(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_plan([[[["dense", "little"]]], [[["little", "much"]]]]).save("plan.json")
    for name in ("latents_dense.npy", "latents_sparse.npy"):
        np.save(name, np.random.default_rng(len(name)).normal(size=(4, 3, 8, 8)).astype(np.float32))
    assert main(list(words)) == 0
    assert capsys.readouterr().out.strip()


def test_the_sitting_on_a_gpu_says_what_it_would_run(tmp_path):
    command = [sys.executable, "kernels/bench/gpu_session.py", str(tmp_path), "--dry-run"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip().split("\n")
    commands = [read_commands(line.split(": ", 1)[1])[0][1:] for line in lines]
    for words in commands:
        check(["python", *words]) if words[1] != "fastdit.cli" else parse(words[2:])
    assert {"doctor", "e2e", "kernels"} <= {word for words in commands for word in words}


def test_the_demo_of_the_makefile_is_accepted():
    lines = subprocess.run(["make", "-n", "-C", str(ROOT), "demo"], capture_output=True, text=True, check=True).stdout
    [command] = [words for words in read_commands(lines) if words[0].endswith("/fastdit")]
    assert check(command) == ("generate",)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_say_what_they_are(page):
    text = page.read_text()
    assert not indented_blocks(text)
    for block in read_blocks(text, page.name):
        assert block.language in ("sh", "python", "json", "toml", "text"), block
        if block.language in ("sh", "python"):
            assert block.marker in MARKERS | {""}, f"{block}: {block.marker!r}"
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize(
    "words",
    [
        "fastdit generat --prompt a --output b",
        "fastdit generate --prompt a",
        "fastdit generate --prompt a --output b --colour red",
        "fastdit doctor --height tall",
        "make tea",
        "python -m fastdit_pipelines.tiny.train --colour red",
        "pip install 'fastdit[tea]'",
        "accelerate launch -m fastdit.cli generate --colour red",
        "curl example",
    ],
)
def test_the_check_itself_finds_faults(words, capsys):
    [command] = read_commands(words)
    with pytest.raises((pytest.fail.Exception, AssertionError, CycloptsError, SystemExit)):
        check(command)
