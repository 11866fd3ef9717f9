"""The tab Library: runs of the output folder with settings, videos and reports; it survives a restart."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from fastdit_ui import views
from fastdit_ui.library_runs import (
    HEADERS,
    delete_run,
    finish_deletions,
    kind_of,
    make_report,
    rows,
    settings_text,
    videos,
)
from fastdit_ui.messages import messages
from fastdit_ui.recording import KIND
from fastdit_ui.runs import RunRecord
from fastdit_ui.serving import served_copy
from fastdit_ui.state import AppState

KINDS = ("all", "generate", "compare", KIND)
COLUMN_WIDTHS = [230, 150, 90, 90, 120, 320, 80, 90, 100, 100]
TITLES = {"video": "Video", "side_by_side": "Dense, sparse, difference", "dense": "Dense", "sparse": "Sparse"}


def build(state: AppState) -> None:
    """Build the tab."""
    finish_deletions(state.runs)
    with gr.Row():
        text = gr.Textbox("", label="Search in prompts, models and methods", elem_id="library-text", scale=3)
        kind = gr.Radio(list(KINDS), value="all", label="Kind", scale=2)
    table = gr.Dataframe(
        headers=HEADERS,
        label="Runs (click one to open it)",
        interactive=False,
        column_widths=COLUMN_WIDTHS,
        elem_id="library-runs",
    )
    run = gr.Textbox("", label="Run", info="its name, from the first column", elem_id="library-run")
    page = _build_page()

    def library_list(text: str, kind: str) -> list[list[Any]]:
        """Runs of the library, newest first: name, time, kind, model, method, prompt, seed and figures."""
        with messages():
            return rows(state.runs, text or "", kind)

    def library_show(name: str) -> tuple[Any, ...]:
        """A run: its figures, videos, picture, and all of its settings."""
        if not name:
            return "", *[gr.update(value=None, visible=False)] * (len(page) - 2), ""
        with messages():
            return _show(state.runs.get(name))

    listed = [text, kind]
    gr.on([text.change, kind.change], library_list, listed, table, api_name="library_list", show_progress="hidden")
    changed = state.page["library_changed"]
    state.page.setdefault("on_load", []).append((library_list, listed, table))
    changed.change(library_list, listed, table, api_visibility="private", show_progress="hidden")
    run.change(library_show, run, list(page.values()), api_name="library_show", show_progress="minimal")

    def opened(event: gr.SelectData) -> Any:
        row = event.row_value
        return row[0] if row else gr.skip()

    table.select(opened, None, run, api_visibility="private", show_progress="hidden")
    _bind_actions(state, run, changed)


def _build_page() -> dict[str, Any]:
    """What a run is shown with, in the order of `_show`."""
    page: dict[str, Any] = {"figures": gr.HTML("", elem_id="library-figures")}
    with gr.Row():
        for name, title in TITLES.items():
            page[name] = gr.Video(
                label=title,
                visible=False,
                loop=True,
                interactive=False,
                elem_id=f"library-{name}",
                min_width=220,
                height=360,
            )
    page["sheet"] = gr.Image(
        label="Frames of both and their difference",
        alt_text="Rows: dense, sparse, difference; columns: frames over the video",
        visible=False,
        interactive=False,
    )
    with gr.Accordion("All settings", open=False):
        page["settings"] = gr.Code("", language="json", label="report.json", interactive=False)
    return page


def _show(record: RunRecord) -> tuple[Any, ...]:
    found = videos(record)
    clips = [
        gr.update(value=served_copy(found[name]) if name in found else None, visible=name in found) for name in TITLES
    ]
    sheet = record.file("compare.png")
    picture = gr.update(value=None if sheet is None else served_copy(sheet), visible=sheet is not None)
    return _figures(record), *clips, picture, settings_text(record)


def _figures(record: RunRecord) -> str:
    report = record.report
    names = {
        "prompt": "Prompt",
        "model": "Model",
        "title": "Setting",
        "method": "Method",
        "seed": "Seed",
        "num_inference_steps": "Steps",
        "density": "Density, whole run",
        "speedup": "Speed-up, end to end",
        "psnr": "PSNR against dense, dB",
        "ssim": "SSIM against dense",
        "seconds": "Seconds",
    }
    values = {name: report[name] for name in names if report.get(name) is not None}
    found = [
        (names[name], f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in values.items()
    ]
    text = views.table(found, f"Run {record.name} ({kind_of(record)})")
    return text + (views.preformatted(str(report["summary"])) if report.get("summary") else "")


def _bind_actions(state: AppState, run: Any, changed: Any) -> None:
    """Report, look inside, and deletion, which asks again."""
    with gr.Row():
        report = gr.Button("Make the report", elem_id="library-report")
        inside = gr.Button("Open in Look inside", elem_id="library-inside")
        delete = gr.Button("Delete this run", variant="stop", elem_id="library-delete")
    page = gr.File(label="Report, one HTML file", interactive=False, visible=False)
    with gr.Group(visible=False, elem_id="library-confirm") as asked:
        question = gr.Markdown("")
        with gr.Row():
            yes = gr.Button("Yes, delete it for good", variant="stop", elem_id="library-yes")
            no = gr.Button("No, keep it", elem_id="library-no")

    def library_report(name: str) -> Any:
        """Make the report page of a comparison; returns the file."""
        with messages():
            return gr.update(value=served_copy(make_report(state.runs, name)), visible=True)

    def ask(name: str) -> tuple[Any, str]:
        with messages():
            record = state.runs.get(name)
        prompt = str(record.report.get("prompt", ""))[:80].replace("`", "'")
        return gr.update(
            visible=True
        ), f"Delete run `{record.name}` (`{prompt}`) with its videos? There is no way back."

    def confirmed(name: str) -> tuple[Any, str, str]:
        with messages():
            delete_run(state.runs, name)
        return gr.update(visible=False), "", f"without {name}"

    def library_delete(name: str, confirm: bool) -> str:
        """Delete a run for good; `confirm` must be true. Returns its name."""
        with messages():
            record = state.runs.get(name)
            if confirm is not True:
                return f"not deleted: repeat with confirm=true to delete {record.name} for good"
            delete_run(state.runs, name)
        return record.name

    report.click(library_report, run, page, api_name="library_report")
    delete.click(ask, run, [asked, question], api_visibility="private", show_progress="hidden")
    no.click(lambda: gr.update(visible=False), None, asked, api_visibility="private", show_progress="hidden")
    yes.click(confirmed, run, [asked, run, changed], api_visibility="private")
    api(library_delete, api_name="library_delete")
    if "inside_run" in state.page:
        _bind_opening(state, run, inside)


def _bind_opening(state: AppState, run: Any, button: Any) -> None:
    """Show a recorded run in the tab Look inside."""

    def open_inside(name: str) -> tuple[Any, Any]:
        with messages():
            if kind_of(state.runs.get(name)) != KIND:
                raise gr.Error("This run was not recorded: record one in Look inside", print_exception=False)
        return gr.update(value=name), gr.update(selected="inside")

    targets = [state.page["inside_run"], state.page["tabs"]]
    button.click(open_inside, run, targets, api_visibility="private", show_progress="hidden")
