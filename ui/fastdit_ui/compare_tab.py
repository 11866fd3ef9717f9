"""The tab Compare, and the endpoint `/compare`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from fastdit_ui import views
from fastdit_ui.form import QUIET, Form, build_form
from fastdit_ui.generate_tab import WAITS, build_snippets
from fastdit_ui.player import build_player, player_value
from fastdit_ui.running import canceller, owner_of, run_for_client, run_on_page, takes_form
from fastdit_ui.serving import served_copy
from fastdit_ui.state import AppState
from fastdit_ui.work import RunResult, run_compare

KIND = "compare"
DOWNLOADS = ("dense.mp4", "sparse.mp4", "side_by_side.mp4", "compare.png", "report.json")


def build(state: AppState) -> None:
    """Build the tab."""
    gr.Markdown("The same video from one seed, dense and sparse. Dense runs are kept: a second look costs one run.")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = build_form(state, KIND, with_dense=False)
            with gr.Row():
                run = gr.Button("Compare", variant="primary", elem_id="compare-run", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", elem_id="compare-cancel", min_width=100)
            take = gr.Button("Take settings from Generate", size="sm", elem_id="compare-take")
        with gr.Column(scale=3, min_width=300):
            status = gr.HTML(
                views.hint("Both videos and their difference will appear here, with one frame slider."),
                elem_id="compare-status",
            )
            player = build_player()
            figures = gr.HTML("", elem_id="compare-figures")
            chart = gr.HTML("")
            with gr.Accordion("Details", open=False):
                details = gr.HTML("")
                files = gr.Files(label="Files", interactive=False)
    build_snippets(state, form, compare=True)
    outputs = [status, player, figures, chart, details, files, state.page["library_changed"]]
    run.click(_on_page(state), form.inputs, outputs, api_visibility="private", **WAITS)
    cancel.click(canceller(state, KIND), None, None, **QUIET)
    source: Form = state.page["generate_form"]
    take.click(None, source.inputs, form.inputs, js="(...values) => values", api_visibility="private")
    _build_endpoint(state, form)


def _on_page(state: AppState) -> Any:
    async def compare_on_page(request: Any, *values: Any) -> AsyncIterator[list[Any]]:
        async for status, result in run_on_page(state, KIND, run_compare, values, owner_of(request)):
            if result is None:
                yield [status, *[gr.skip()] * 6]
                continue
            yield [
                status,
                player_value(result.folder, result.report),
                views.figures(result.report, result.name) + views.notes(views.remarks(result.report)),
                views.density_chart(result.report["density_by_step"]),
                views.preformatted(result.report["summary"]),
                _files(result),
                result.name,
            ]

    return takes_form(compare_on_page, "Compare dense and sparse.")


def _files(result: RunResult) -> list[str]:
    return [served_copy(result.folder / name) for name in DOWNLOADS]


def _build_endpoint(state: AppState, form: Form) -> None:
    async def compare(request: Any, *values: Any) -> list[Any]:
        result = await run_for_client(state, KIND, run_compare, values, owner_of(request))
        return [*_files(result)[:3], result.report]

    endpoint = takes_form(
        compare,
        "Make the same video dense and sparse from one seed. Returns the dense video, the sparse one, both with their "
        "difference side by side, and the report with PSNR, SSIM, seconds, speed-up and density.",
    )
    # Endpoints need components for their results; nobody sees these.
    with gr.Column(visible=False):
        outputs = [gr.Video(label=label) for label in ("dense", "sparse", "side by side")]
        gr.Button().click(endpoint, form.inputs, [*outputs, gr.JSON(label="report")], api_name="compare", **WAITS)
