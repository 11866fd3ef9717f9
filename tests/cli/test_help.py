"""Help pages: those of groups say what each command does, and no option is there twice."""

import io
import json
import re

import pytest
from rich.console import Console

from fastdit.cli import _load_listed, app, main

GROUPS = [(), ("bench",), ("eval",), ("eval", "vbench"), ("plan",)]


def commands(group):
    return [name for name in app.parse_commands(list(group))[1][-1] if not name.startswith("-")]


def page(*words):
    """A help page 200 characters wide, whatever the terminal says of itself (a dumb one is 80 wide, COLUMNS or not)."""
    shown = io.StringIO()
    _load_listed(words)
    app([*words, "--help"], console=Console(file=shown, width=200, color_system=None, force_terminal=False))
    return shown.getvalue()


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_a_group_says_what_its_commands_do(group):
    shown = page(*group)
    assert commands(group)
    for name in commands(group):
        assert re.search(rf"^│ {name} +[A-Z][^│]{{10,}}", shown, re.M), name


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_a_command_names_each_option_once(group):
    option = r"^│ (?:[* ]  )?(?:[A-Z-]+ )?(--[a-z0-9-]+)"
    found = {name: re.findall(option, page(*group, name), re.M) for name in commands(group)}
    assert any(found.values())
    for name, options in found.items():
        assert len(options) == len(set(options)), name


def test_no_layer_dense(capsys):
    words = ["doctor", "--model", "wan-1.3b", "--density", "0.2", "--dense-steps", "0", "--json"]
    densities = []
    for more in ([], ["--empty-dense-layers"]):
        assert main([*words, *more]) == 0
        densities.append(json.loads(capsys.readouterr().out)["density_run"][0])
    assert densities[1] < densities[0]
