"""The form of a recorded run, its buttons, and the endpoint `/look_inside`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import gradio as gr

from fastdit_ui import views
from fastdit_ui.dial import DEFAULT_POSITION, POSITIONS
from fastdit_ui.jobs import follow
from fastdit_ui.messages import messages, shown
from fastdit_ui.open_dropdown import open_dropdown
from fastdit_ui.recording import parse_numbers, record_run, recorded_names
from fastdit_ui.request import FormValues, resolve
from fastdit_ui.running import owner_of
from fastdit_ui.state import AppState

PROMPT = "a red circle moving left on a dark background"
METHODS = ("pyramid", "adaptive", "cached", "dense")
KIND = "inside"
# What clients of the API are told of the fields.
FIELDS_SAY = """Args:
    prompt: What to show.
    model: One that the server was started with.
    source: Where the method comes from: "dial", "expert" or "plan".
    dial: Position from 0 (fastest) to 5 (dense).
    method: Method, for "expert".
    density: Density of its sparse calls.
    plan: A plan of this server, for "plan".
    steps: Denoising steps.
    seed: Seed of the initial noise.
    width: Pixels.
    height: Pixels.
    duration: Seconds.
    layers: Layers to record, e.g. "0, 3, 7"; empty for the first, middle and last.
    recorded_steps: Steps to record, from 0; empty for four, evenly spread.
"""


def build_inside_form(state: AppState) -> dict[str, Any]:
    """The form of a run, in the order of the API."""
    models = list(state.settings.models)
    defaults = state.engine.call_defaults(models[0])
    form: dict[str, Any] = {
        "prompt": gr.Textbox(PROMPT, label="Prompt", lines=2, elem_id="inside-prompt"),
        "model": gr.Dropdown(models, value=models[0], label="Model"),
        "source": gr.Radio(
            [("Dial", "dial"), ("Method", "expert"), ("Plan", "plan")],
            value="dial",
            label="What decides what is skipped",
        ),
        "dial": gr.Slider(
            0,
            len(POSITIONS) - 1,
            value=DEFAULT_POSITION,
            step=1,
            label="Faster ↔ closer to dense",
            info=", ".join(f"{number} {one.name}" for number, one in enumerate(POSITIONS)),
        ),
        "method": gr.Dropdown(list(METHODS), value="pyramid", label="Method", visible=False),
        "density": gr.Slider(0.02, 1.0, value=0.2, step=0.01, label="Density of sparse calls", visible=False),
        "plan": open_dropdown(state.plans.list(), value=None, label="Plan", visible=False),
        "steps": gr.Slider(1, 100, value=int(defaults.get("num_inference_steps", 30)), step=1, label="Denoising steps"),
        "seed": gr.Number(0, label="Seed", precision=0, minimum=0),
    }
    with gr.Accordion("Size and what is recorded", open=False):
        form["width"] = gr.Number(int(defaults.get("width", 832)), label="Width, pixels", precision=0)
        form["height"] = gr.Number(int(defaults.get("height", 480)), label="Height, pixels", precision=0)
        frames, fps = defaults.get("num_frames", 81), defaults.get("fps", 16)
        form["duration"] = gr.Number(round(frames / fps, 2), label="Duration, seconds")
        form["layers"] = gr.Textbox("", label="Layers to record", info="e.g. 0, 3, 7; empty: first, middle and last")
        form["recorded_steps"] = gr.Textbox("", label="Steps to record", info="from 0; empty: four, evenly spread")

    def choose(source: str) -> list[Any]:
        parts = {"dial": ("dial",), "expert": ("method", "density"), "plan": ("plan",)}
        found = [gr.update(visible=name in parts[source]) for name in ("dial", "method", "density")]
        return [*found, gr.update(visible=source == "plan", choices=state.plans.list())]

    names = ("dial", "method", "density", "plan")
    form["source"].change(choose, form["source"], [form[name] for name in names], api_visibility="private")
    return form


def bind_recording(state: AppState, form: dict[str, Any], run: Any) -> None:
    """Add the buttons and the progress; a finished run is chosen in `run`."""
    start = gr.Button("Record a run", variant="primary", elem_id="inside-start")
    cancel = gr.Button("Cancel", variant="stop", elem_id="inside-cancel")
    status = gr.HTML("", elem_id="inside-status")
    made = gr.Textbox(visible="hidden", label="Run")
    count = gr.Number(visible="hidden", label="Cancelled")

    def choose_run(name: str) -> Any:
        return gr.update(choices=recorded_names(state.runs), value=name) if name else gr.skip()

    def cancel_recording(request: gr.Request) -> int:
        """Cancel the recordings of this session; returns how many there were."""
        return state.jobs.cancel_owner(owner_of(request), KIND)

    start.click(
        make_recorder(state, {name: field.value for name, field in form.items()}),
        list(form.values()),
        [made, status, state.page["library_changed"]],
        api_name="look_inside",
        concurrency_limit=None,
        show_progress="hidden",
    ).success(choose_run, made, run, api_visibility="private")
    cancel.click(cancel_recording, None, count, api_name="look_inside_cancel", show_progress="hidden")


def make_recorder(state: AppState, defaults: Mapping[str, Any]) -> Callable[..., Any]:
    """What the button does.

    Args:
        state: The server.
        defaults: Of the fields of the form, in the order in which their values come; clients must give the first.
    """

    async def look_inside(request: Any, *values: Any) -> AsyncIterator[tuple[Any, Any, Any]]:
        """Generate a video and record what its attention keeps, pools and drops; returns the name of the run."""
        given = dict(zip(defaults, values, strict=True))
        with messages():
            layers, steps = (parse_numbers(given[name], name) for name in ("layers", "recorded_steps"))
            # Reading configurations and plans must not hold up other pages.
            asked = await asyncio.to_thread(resolve, state, form_values(given))
            job = state.jobs.submit(KIND, owner_of(request), lambda job: record_run(state, asked, layers, steps, job))
        async for view in follow(state.jobs, job):
            yield gr.skip(), views.progress(view), gr.skip()
        if job.status == "failed":
            raise shown(job.error or "")
        if job.status == "done":
            yield job.result, views.progress(job.view()), job.result

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, annotation=Any, default=value if number else inspect.Parameter.empty)
        for number, (name, value) in enumerate(defaults.items())
    ]
    first = inspect.Parameter("request", kind, annotation=gr.Request)
    look_inside.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    look_inside.__annotations__ = {"request": gr.Request}
    look_inside.__doc__ = f"{look_inside.__doc__}\n\n{FIELDS_SAY}"
    return look_inside


def form_values(given: dict[str, Any]) -> FormValues:
    """The values as the form of Generate has them."""
    return FormValues(
        prompt=given["prompt"],
        model=given["model"],
        width=given["width"],
        height=given["height"],
        duration=given["duration"],
        num_inference_steps=given["steps"],
        seed=given["seed"],
        source=given["source"],
        dial=given["dial"],
        method=given["method"],
        density=given["density"],
        # What bounds the methods that choose their own density.
        max_density=given["density"],
        plan_name=given["plan"],
    )
