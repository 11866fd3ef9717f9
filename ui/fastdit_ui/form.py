"""The form of the tabs Generate and Compare: what to show, how large, and how much to skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from fastdit.errors import FastDitError
from fastdit_ui import views
from fastdit_ui.dial import DEFAULT_POSITION, LAST_SPARSE, POSITIONS, position_at
from fastdit_ui.open_dropdown import open_dropdown
from fastdit_ui.request import DENSE, EXPERT_METHODS, FIELDS, KNOBS, MODEL_ORDER, SOURCES
from fastdit_ui.settings import MAX_PROMPT, MAX_SIDE, MAX_STEPS
from fastdit_ui.sizes import settle
from fastdit_ui.state import AppState
from fastdit_ui.uploads import uploads_only

EXAMPLES = (
    "a red circle moving left on a dark background",
    "a green square moving up on a light background",
    "a blue cross moving slowly right on a gray background",
    "a yellow triangle moving down on a dark background",
)
ORDERS = (MODEL_ORDER, "gilbert", "raster", "space_major", "frame_gilbert", "score", "auto")
# What a model whose family is unknown begins with.
PLAIN_SIZE = {"width": 832, "height": 480, "num_frames": 81, "num_inference_steps": 50}
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Form:
    """Components by the names of `FormValues`."""

    components: dict[str, Any]

    @property
    def inputs(self) -> list[Any]:
        """In the order of `FormValues`."""
        return [self.components[name] for name in FIELDS]


def model_values(state: AppState, model: str) -> dict[str, Any]:
    """What the form begins with for a model."""
    call = state.engine.call_defaults(model)
    fps = call["fps"]
    sizes = dict(PLAIN_SIZE)
    try:
        shape = state.engine.shape(model, fetch=False)
    except FastDitError:
        # The run itself will say what is wrong with the model.
        shape = None
    for name in sizes:
        sizes[name] = call.get(name) or getattr(shape, name, None) or sizes[name]
    return {
        "width": sizes["width"],
        "height": sizes["height"],
        "duration": round(sizes["num_frames"] / fps, 2),
        "num_inference_steps": min(MAX_STEPS, sizes["num_inference_steps"]),
        "guidance_scale": call.get("guidance_scale"),
        "dense_steps": float(state.engine.method_defaults(model, "pyramid").get("dense_steps", 0.2)),
    }


def build_form(state: AppState, name: str, *, with_dense: bool) -> Form:
    """Build the form.

    Args:
        state: The server.
        name: Prefix of the components' ids.
        with_dense: Whether dense can be chosen; a comparison has it anyway.
    """
    model = state.settings.models[0]
    start = model_values(state, model)
    parts: dict[str, Any] = {}
    parts["prompt"] = gr.Textbox(
        label="Prompt", lines=2, max_length=MAX_PROMPT, placeholder=EXAMPLES[0], elem_id=f"{name}-prompt"
    )
    gr.Examples(
        [[text] for text in EXAMPLES], [parts["prompt"]], label="Examples (bundled model)", api_visibility="private"
    )
    _skipping(state, parts, name, start, with_dense)
    with gr.Accordion("Video", open=False, elem_id=f"{name}-video-settings"):
        _video(state, parts, name, start)
    form = Form(parts)
    _connect(state, form)
    return form


def _video(state: AppState, parts: dict[str, Any], name: str, start: dict[str, Any]) -> None:
    models = list(state.settings.models)
    parts["model"] = gr.Dropdown(
        models, value=models[0], label="Model", info="Those the server was started with.", elem_id=f"{name}-model"
    )
    parts["negative_prompt"] = gr.Textbox("", label="Negative prompt", max_length=MAX_PROMPT)
    with gr.Row():
        parts["width"] = gr.Number(
            start["width"], label="Width", precision=0, minimum=1, maximum=MAX_SIDE, min_width=90
        )
        parts["height"] = gr.Number(
            start["height"], label="Height", precision=0, minimum=1, maximum=MAX_SIDE, min_width=90
        )
        parts["duration"] = gr.Number(
            start["duration"], label="Seconds", minimum=0.01, min_width=90, elem_id=f"{name}-duration"
        )
    parts["size_note"] = gr.HTML(size_note(state, models[0], start["width"], start["height"], start["duration"]))
    with gr.Row():
        parts["num_inference_steps"] = gr.Slider(
            1, MAX_STEPS, value=start["num_inference_steps"], step=1, label="Steps", elem_id=f"{name}-steps"
        )
        parts["guidance_scale"] = gr.Number(
            start["guidance_scale"], label="Guidance", info="Empty for the model's own.", minimum=0, maximum=50
        )
    with gr.Row():
        parts["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id=f"{name}-seed")
        parts["random_seed"] = gr.Checkbox(False, label="Random seed", info="The one that was used is shown.")
    parts["image"] = uploads_only(
        gr.Image(label="First frame (image-to-video models only)", type="pil", sources=["upload"], height=160)
    )


def _skipping(state: AppState, parts: dict[str, Any], name: str, start: dict[str, Any], with_dense: bool) -> None:
    titles = {"dial": "Dial", "expert": "Expert", "plan": "Plan"}
    parts["source"] = gr.Radio(
        [(titles[source], source) for source in SOURCES],
        value=SOURCES[0],
        label="What decides what is skipped",
        elem_id=f"{name}-source",
    )
    with gr.Group(visible=True) as parts["dial_group"]:
        parts["dial"] = gr.Slider(
            0,
            len(POSITIONS) - 1 if with_dense else LAST_SPARSE,
            value=DEFAULT_POSITION,
            step=1,
            label="Faster ↔ closer to dense",
            elem_id=f"{name}-dial",
        )
        parts["dial_note"] = gr.Markdown(dial_note(DEFAULT_POSITION), elem_classes="fd-dial-note")
    with gr.Group(visible=False) as parts["expert_group"]:
        _expert(parts, name, start, with_dense)
    with gr.Group(visible=False) as parts["plan_group"]:
        parts["plan_name"] = open_dropdown(
            state.plans.list(),
            value=None,
            label="Plan of this server",
            elem_id=f"{name}-plan",
        )
        plan_file = gr.File(
            label="Or a plan file (.json)",
            file_types=[".json"],
            type="filepath",
            height=120,
            elem_id=f"{name}-plan-file",
        )
        parts["plan_file"] = uploads_only(plan_file)


def _expert(parts: dict[str, Any], name: str, start: dict[str, Any], with_dense: bool) -> None:
    methods = [*EXPERT_METHODS, *([DENSE] if with_dense else [])]
    parts["method"] = gr.Dropdown(methods, value=methods[0], label="Method", elem_id=f"{name}-method")
    shown = KNOBS[methods[0]]
    parts["density"] = gr.Slider(
        0.01, 1, value=0.2, step=0.01, label="Density", info="Share of key tiles.", visible="density" in shown
    )
    parts["top_p"] = gr.Slider(
        0, 1, value=0.9, step=0.01, label="top_p", info="Share of estimated attention mass.", visible="top_p" in shown
    )
    parts["max_density"] = gr.Slider(
        0.05, 1, value=0.3, step=0.01, label="Largest density", info="Per query tile.", visible="max_density" in shown
    )
    parts["pattern"] = gr.Textbox(
        "radial|sink", label="Pattern", info="E.g. radial|sink or window:3,9,9|frames:2", visible="pattern" in shown
    )
    parts["refresh_every"] = gr.Slider(
        1, MAX_STEPS, value=10, step=1, label="Refresh every ... steps", visible="refresh_every" in shown
    )
    parts["dense_steps"] = gr.Slider(
        0, 1, value=start["dense_steps"], step=0.05, label="Dense steps", info="Leading share of the run."
    )
    with gr.Row():
        parts["order"] = gr.Dropdown(list(ORDERS), value=MODEL_ORDER, label="Token order")
        parts["min_tokens"] = gr.Number(
            2048, label="min_tokens", info="Shorter sequences stay dense.", precision=0, minimum=0
        )


def dial_note(dial: float) -> str:
    """What a position of the dial does."""
    position = position_at(dial)
    return f"**{position.name}.** {position.says}"


def size_note(state: AppState, model: str, width: float, height: float, duration: float) -> str:
    """What a size becomes and why, as HTML."""
    try:
        state.settings.check_model(model)
        fps = state.engine.call_defaults(model)["fps"]
        size = settle(state.engine.shape(model, fetch=False), width, height, duration, fps)
    except FastDitError as error:
        return views.notes([str(error)])
    text = f"{size.width} x {size.height} pixels, {size.num_frames} frames at {fps} per second"
    if size.tokens is not None:
        text += f": {size.tokens:,} tokens"
    return views.notes([f"{text}.", *size.notes])


def _connect(state: AppState, form: Form) -> None:
    """Let the parts of the form follow each other."""
    parts = form.components
    parts["dial"].change(dial_note, parts["dial"], parts["dial_note"], **QUIET)
    groups = [parts[f"{source}_group"] for source in SOURCES]
    parts["source"].change(
        lambda chosen: [gr.update(visible=source == chosen) for source in SOURCES], parts["source"], groups, **QUIET
    )
    knobs = ("density", "top_p", "max_density", "pattern", "refresh_every")
    parts["method"].change(
        lambda method: [gr.update(visible=knob in KNOBS.get(method, ())) for knob in knobs],
        parts["method"],
        [parts[knob] for knob in knobs],
        **QUIET,
    )
    size = [parts[field] for field in ("model", "width", "height", "duration")]
    gr.on(
        [component.change for component in size],
        lambda *values: size_note(state, *values),
        size,
        parts["size_note"],
        **QUIET,
    )
    follows = ("width", "height", "duration", "num_inference_steps", "guidance_scale", "dense_steps")

    def begin(model: str) -> list[Any]:
        values = model_values(state, model) if model in state.settings.models else {}
        return [values.get(field, gr.skip()) for field in follows]

    parts["model"].input(begin, parts["model"], [parts[field] for field in follows], **QUIET)
    # Plans may have come since the page was built.
    parts["source"].change(lambda: gr.update(choices=state.plans.list()), None, parts["plan_name"], **QUIET)
