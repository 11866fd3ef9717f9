"""The tab Generate, and the endpoints `/generate` and `/cancel`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from fastdit_ui import views
from fastdit_ui.form import QUIET, Form, build_form
from fastdit_ui.running import canceller, owner_of, run_for_client, run_on_page, snippets, takes_form
from fastdit_ui.serving import served_copy
from fastdit_ui.state import AppState
from fastdit_ui.work import run_generate

KIND = "generate"
WAITS = {"concurrency_limit": None, "show_progress": "hidden"}


def build(state: AppState) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            form = build_form(state, KIND, with_dense=True)
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate-run", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", elem_id="generate-cancel", min_width=100)
        with gr.Column(scale=1, min_width=300):
            status = gr.HTML(views.hint("Your video will appear here."), elem_id="generate-status")
            video = gr.Video(label="Video", autoplay=True, loop=True, interactive=False, elem_id="generate-video")
            figures = gr.HTML("", elem_id="generate-figures")
            chart = gr.HTML("")
            with gr.Accordion("Details", open=False):
                details = gr.HTML("")
    build_snippets(state, form, compare=False)
    state.page["plan_choice"] = form.components["plan_name"]
    state.page["plan_source"] = form.components["source"]
    state.page["generate_form"] = form
    outputs = [status, video, figures, chart, details, state.page["library_changed"]]
    run.click(partial_page(state), form.inputs, outputs, api_visibility="private", **WAITS)
    cancel.click(canceller(state, KIND), None, None, **QUIET)
    _build_endpoints(state, form)


def partial_page(state: AppState) -> Any:
    """What the button does."""

    async def generate_on_page(request: Any, *values: Any) -> AsyncIterator[list[Any]]:
        async for status, result in run_on_page(state, KIND, run_generate, values, owner_of(request)):
            if result is None:
                yield [status, *[gr.skip()] * 5]
                continue
            yield [
                status,
                served_copy(result.folder / "video.mp4"),
                views.figures(result.report, result.name) + views.notes(views.remarks(result.report)),
                views.density_chart(result.report["density_by_step"]),
                views.preformatted(result.report["summary"]),
                result.name,
            ]

    return takes_form(generate_on_page, "Generate a video.")


def build_snippets(state: AppState, form: Form, *, compare: bool) -> None:
    """The present settings as Python and as a command, which follow the form."""
    with gr.Accordion("Copy these settings", open=False, elem_classes="fd-snippets"):
        python = gr.Code(label="As Python", language="python", interactive=False, buttons=["copy"])
        command = gr.Code(label="As command", language="shell", interactive=False, buttons=["copy"], wrap_lines=True)
    fill = partial(snippets, state, compare)
    outputs = [python, command]
    triggers = [component.change for name, component in form.components.items() if component in form.inputs]
    gr.on(triggers, fill, form.inputs, outputs, trigger_mode="always_last", **QUIET)
    state.page.setdefault("on_load", []).append((fill, form.inputs, outputs))


def _build_endpoints(state: AppState, form: Form) -> None:
    async def generate(request: Any, *values: Any) -> list[Any]:
        result = await run_for_client(state, KIND, run_generate, values, owner_of(request))
        return [served_copy(result.folder / "video.mp4"), result.report["seed"], result.report]

    def cancel(request: gr.Request) -> int:
        """Cancel all waiting and running jobs of this session; returns how many there were."""
        return state.jobs.cancel_owner(owner_of(request))

    endpoint = takes_form(
        generate,
        "Generate a video from a prompt, with sparse or dense attention. "
        "Returns the video, the seed that was used, and the report with seconds and density.",
    )
    # Endpoints need components for their results; nobody sees these.
    with gr.Column(visible=False):
        outputs = [gr.Video(label="video"), gr.Number(label="seed", precision=0), gr.JSON(label="report")]
        gr.Button().click(endpoint, form.inputs, outputs, api_name="generate", **WAITS)
        # Through the queue like the jobs, for Gradio gives MCP tools no session outside of it.
        gr.Button().click(cancel, None, gr.Number(label="cancelled", precision=0), api_name="cancel", **WAITS)
