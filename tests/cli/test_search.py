"""`fastdit search` and `fastdit plan show` on a random pipeline."""

import json

import imageio.v3 as iio
import pytest

from fastdit import Plan
from fastdit.cli import main

SMALL = ["--height=64", "--width=96", "--num-frames=9", "--num-inference-steps=3"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n\na blue square\n")
    return path


def test_a_plan_is_found_shown_and_drawn(model_folder, prompts, tmp_path, capsys):
    output = tmp_path / "plan.json"
    words = ["search", f"--model={model_folder}", f"--prompts={prompts}", f"--output={output}", *SMALL]
    assert main([*words, "--density=0.9", "--phases", "0.5", "1.0", "--num-measured=1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["measured"]["density"] <= 0.95
    assert [phase["until"] for phase in report["phases"]] == [0.5, 1.0]
    assert [sum(phase["heads"].values()) for phase in report["phases"]] == [4, 4]
    assert Plan.load(output).promise == {"density": 0.9}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "prompts.txt"]

    words = ["generate", f"--model={model_folder}", "--prompt=a red circle", f"--output={tmp_path / 'made'}", *SMALL]
    assert main([*words, f"--plan={output}", "--guard=0.8", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["guard"] == 0.8
    assert "heads made dense for their recall: " in made["summary"]

    assert main(["plan", "show", str(output), f"--picture={tmp_path / 'plan.png'}"]) == 0
    shown = capsys.readouterr().out
    assert "asked for: density 0.9 (a budget)" in shown
    found = report["token_orders"]
    assert f"token orders: fixed for {found['fixed']} of the {found['heads']} heads that have a choice" in shown
    picture = iio.imread(tmp_path / "plan.png")
    assert min(picture.shape[:2]) > 100
    assert picture.std() > 5


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no aim given"),
        (["--density=0.5", "--min-psnr=30"], 2, "exactly one"),
        (["--density=2"], 2, "density=2.0"),
        (["--density=0.5", "--ladder=long"], 2, "ladder"),
        (["--density=0.5", "--prompts=missing.txt"], 2, "missing.txt"),
        (["--density=0.5", "--bench=missing.json"], 2, "no kernel timings"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(model_folder, prompts, tmp_path, capsys, words, code, message):
    given = [f"--model={model_folder}", f"--output={tmp_path / 'plan.json'}", *SMALL]
    if not any(word.startswith("--prompts") for word in words):
        given.append(f"--prompts={prompts}")
    assert main(["search", *given, *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_a_stopped_search_is_not_taken_up_unasked(model_folder, prompts, tmp_path, capsys):
    (tmp_path / "plan.json.search").mkdir()
    words = ["search", f"--model={model_folder}", f"--prompts={prompts}", f"--output={tmp_path / 'plan.json'}"]
    assert main([*words, "--density=0.5"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_orders_are_counted_where_heads_have_a_choice():
    from plans import make_plan, sparse_mode

    from fastdit.cli.search import count_orders

    modes = {"dense": "dense", "one": sparse_mode(density=0.1), "auto": sparse_mode(density=0.1, order="auto")}
    tables = [[[["dense", "one", "auto", "auto"]]], [[["auto"] * 4]]]
    orders = [[[[None, ("gilbert", "gilbert"), ("gilbert", "score"), None]]], None]
    assert count_orders(make_plan(tables, modes=modes, orders=orders)) == {"heads": 6, "fixed": 1}
    assert count_orders(make_plan([[[["dense", "one"]]]], modes=modes)) == {"heads": 0, "fixed": 0}


def test_dense_heads_have_no_letter_in_the_picture():
    from plans import make_plan

    from fastdit_eval.plan_sheet import mode_letters

    assert mode_letters(make_plan([[[["dense", "much"]]]])) == {"dense": "", "little": "a", "much": "a"}


def test_showing_what_is_no_plan_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "plan.json").write_text("{}")
    assert main(["plan", "show", str(tmp_path / "plan.json")]) == 1
    assert "missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--guard=0.8"], "guard=0.8 without --plan"), (["--guard=1.5", "--plan=missing.json"], "guard=1.5")],
)
def test_a_guard_needs_a_plan(model_folder, tmp_path, capsys, words, message):
    given = ["generate", f"--model={model_folder}", "--prompt=a", f"--output={tmp_path / 'made'}"]
    assert main([*given, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
