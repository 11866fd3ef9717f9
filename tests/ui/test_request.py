"""From the values of a form to a request: sizes, methods, seeds, and the lines to copy."""

import ast
import dataclasses
import shlex

import pytest
from ui_stub import StubEngine

import fastdit
from fastdit.cli import app
from fastdit.cli.generate import VideoOptions, video_settings
from fastdit.errors import ConfigError, FastDitError
from fastdit_ui.dial import LAST_SPARSE, POSITIONS
from fastdit_ui.request import FormValues, resolve
from fastdit_ui.settings import ServerSettings
from fastdit_ui.sizes import settle
from fastdit_ui.snippets import as_command, as_python
from fastdit_ui.state import AppState
from fastdit_ui.views import remarks

PROMPT = "a red circle moving left on a dark background"


@pytest.fixture
def state(tmp_path):
    made = AppState(ServerSettings(output_dir=tmp_path), StubEngine())
    yield made
    made.close()


def ask(state, **values):
    return resolve(state, FormValues(prompt=PROMPT, **values))


def test_defaults_are_those_of_the_bundled_model(state):
    request = ask(state, guidance_scale=2.5)
    defaults = {key: value for key, value in state.engine.call_defaults("tiny").items() if key != "fps"}
    assert request.call == {**defaults, "prompt": PROMPT, "seed": 0}
    assert request.size.notes == ()


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ((96, 96, 4.75), (96, 96, 57)),
        ((100, 90, 1.0), (96, 96, 13)),
        ((1, 1, 0.01), (8, 8, 1)),
        ((96, 96, 2), (96, 96, 25)),
    ],
)
def test_sizes_move_to_the_nearest_that_the_model_makes(state, asked, made):
    size = settle(state.engine.shape("tiny"), *asked, fps=12)
    unit = state.engine.shape("tiny").spatial * state.engine.shape("tiny").patch
    assert size.width % unit == size.height % unit == 0
    assert (size.num_frames - 1) % state.engine.shape("tiny").temporal == 0
    if asked[0] > 1:
        assert (size.width, size.height, size.num_frames) == made
    assert bool(size.notes) == (asked[:2] != made[:2] or round(asked[2] * 12) != made[2])


def test_the_reason_of_a_move_is_told(state):
    notes = settle(state.engine.shape("tiny"), 100, 96, 2.0, fps=12).notes
    assert notes[0].startswith("Width 100 becomes 96: the model works in blocks of")
    assert "24 frames become 25" in notes[1]


@pytest.mark.parametrize(
    "size", [(0, 96, 1), (96, 5000, 1), (96, 96, 0), (96, 96, 1e6), (float("nan"), 96, 1), ("9", 9, 1)]
)
def test_sizes_out_of_range_are_refused(state, size):
    with pytest.raises(ConfigError, match="accepted"):
        settle(state.engine.shape("tiny"), *size, fps=12)


@pytest.mark.parametrize("dial", range(len(POSITIONS)))
def test_every_position_of_the_dial_is_a_method(state, dial):
    request = ask(state, dial=dial)
    assert request.title == POSITIONS[dial].name
    assert (request.config is None) == (dial > LAST_SPARSE)


@pytest.mark.parametrize("dial", range(LAST_SPARSE + 1))
def test_every_position_of_the_dial_does_what_it_says(state, dial):
    says, config = POSITIONS[dial].says, ask(state, dial=dial).config
    chosen = getattr(config, "source", config)
    assert chosen.method == "pyramid"
    assert f"at density {chosen.density:.2f}" in says
    own = state.engine.method_defaults("tiny", "pyramid")["dense_steps"]
    assert config.schedule.dense_steps == (0.2 if "the first 20 %" in says else own)
    assert config.schedule.dense_layers == (0,)
    assert "dense are layer 0" in says
    assert ("suit the model" in says) == ("the first 20 %" not in says)
    assert getattr(config, "refresh_every", None) == (10 if "every ten steps" in says else None)


def test_the_dial_rises_in_density(state):
    kept = [ask(state, dial=dial).config for dial in range(LAST_SPARSE + 1)]
    densities = [getattr(config, "source", config).density for config in kept]
    assert densities == sorted(densities)
    assert len(set(densities)) == len(densities)


def test_a_random_seed_is_drawn_and_told(state):
    seeds = {ask(state, random_seed=True, seed=5).call["seed"] for _ in range(8)}
    assert len(seeds) == 8
    assert ask(state, seed=5).call["seed"] == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "/etc"}, "started with"),
        ({"dial": 2.5}, "dial"),
        ({"dial": 99}, "dial"),
        ({"source": "anything"}, "source"),
        ({"source": "expert", "method": "mixed"}, "method"),
        ({"source": "expert", "method": "static", "pattern": "spiral"}, "spiral"),
        ({"source": "expert", "density": 2}, "density"),
        ({"source": "plan"}, "no plan is chosen"),
        ({"source": "plan", "plan_name": "../../etc/passwd"}, "plan name"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"seed": -1}, "seed"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"negative_prompt": "x" * 5000}, "negative_prompt"),
    ],
)
def test_what_is_not_accepted_is_told(state, values, message):
    with pytest.raises(FastDitError, match=message):
        ask(state, **values)


def test_an_empty_prompt_is_refused(state):
    with pytest.raises(ConfigError, match="prompt is empty"):
        resolve(state, FormValues(prompt="  "))


def test_a_damaged_plan_names_its_fault(state, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"format": "other"}')
    with pytest.raises(fastdit.PlanError, match="missing") as caught:
        ask(state, source="plan", plan_file=str(path))
    assert "plan.json" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


CHOICES = [
    *({"dial": dial} for dial in range(len(POSITIONS))),
    {"source": "expert", "method": "adaptive", "top_p": 0.8, "max_density": 0.5, "dense_steps": 0.0},
    {"source": "expert", "method": "static", "pattern": "window:3,9,9|frames:2", "min_tokens": 0},
    {"source": "expert", "method": "cached", "refresh_every": 4, "order": "raster"},
    {"source": "expert", "method": "pyramid", "density": 0.3, "order": "score", "min_tokens": 100},
    {"source": "expert", "method": "dense", "negative_prompt": 'it\'s "bad"; $(rm)', "width": 48},
]


@pytest.mark.parametrize("values", CHOICES)
def test_the_command_makes_the_same_run(state, values):
    request = ask(state, **values)
    compare = request.config is not None
    words = shlex.split(as_command(request, compare=compare))
    assert words[0] == "fastdit"
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    given = bound.arguments
    settings, fps = video_settings("tiny", given["prompt"], given.get("video", VideoOptions()))
    assert {**settings.call_arguments(), "seed": settings.seed} == request.call
    assert fps == request.fps
    if request.config is None:
        assert given["method"] == "dense"
    else:
        assert given["compare"]
        defaults = state.engine.method_defaults("tiny", request.method)
        assert given["sparse"].build(given["method"], defaults) == request.config


@pytest.mark.parametrize("values", CHOICES)
def test_the_python_makes_the_same_run(state, values):
    request = ask(state, **values)
    tree = ast.parse(as_python(request))
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    arguments = {one.arg: one.value for one in calls["pipe"].keywords}
    seed = arguments.pop("generator").args[0].value
    assert ast.literal_eval(arguments.pop("output_type")) == "np"
    assert {**{name: ast.literal_eval(value) for name, value in arguments.items()}, "seed": seed} == request.call
    if request.config is None:
        assert "fastdit.enable" not in calls
    else:
        config = eval(ast.unparse(calls["fastdit.enable"].args[1]), {"fastdit": fastdit})
        assert config == request.config


def test_equal_dense_runs_share_a_baseline_and_others_do_not(state):
    key = ask(state, dial=0).baseline_key()
    assert ask(state, dial=3).baseline_key() == key
    for other in ({"seed": 1}, {"width": 48}, {"num_inference_steps": 3}, {"negative_prompt": "dark"}):
        assert ask(state, **other).baseline_key() != key


@pytest.mark.parametrize(("shares", "told"), [((0.95, 0.9), False), ((0.2, 0.9), True), ((None, None), False)])
def test_seconds_of_a_busy_machine_are_not_passed_off_as_a_speed(shares, told):
    report = {"notes": [], "config": None, "density": 0.5, "speedup": 4.5}
    lines = remarks({**report, "dense_core_share": shares[0], "sparse_core_share": shares[1]})
    assert any("mean nothing" in line for line in lines) == told


def test_form_values_have_the_prompt_first_and_defaults_for_the_rest():
    first, *rest = dataclasses.fields(FormValues)
    assert first.name == "prompt"
    assert all(field.default is not dataclasses.MISSING for field in rest)
