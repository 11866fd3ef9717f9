"""The tab Search: a plan under a promise, found while the page watches; it can be stopped and goes on later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.events import api

from fastdit.search.ladder import Mode
from fastdit_ui import views
from fastdit_ui.messages import messages
from fastdit_ui.open_dropdown import open_dropdown
from fastdit_ui.search_form import AIM_SHORT, build_search_form, search_starter
from fastdit_ui.search_store import ROUND_HEADERS, SearchStore
from fastdit_ui.search_worker import SearchWorker
from fastdit_ui.state import AppState

RESULT = "the result"
# Modes to choose from; `None` for those of `fastdit.search`.
LADDER: Mapping[str, Mode] | None = None
WATCH_SECONDS = 2.0
FIGURES = {
    "psnr": "PSNR",
    "worst_psnr": "worst PSNR",
    "ssim": "SSIM",
    "verified_runs": "runs",
    "noise_floor_psnr": "noise floor PSNR",
    "noise_floor_ssim": "noise floor SSIM",
}


def build(state: AppState) -> None:
    """Build the tab."""
    worker = SearchWorker(state, SearchStore(state.runs.root / "searches"), LADDER)
    state.page["search_worker"] = worker
    gr.Markdown(
        "Find, for every head and phase of denoising, how much can be skipped under a promise. A search runs the model "
        "some dozen times; it lets other jobs pass between its runs, and a stopped one goes on where it was."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            form = build_search_form(state)
            start = gr.Button("Start a search", variant="primary", elem_id="search-start")
        with gr.Column(scale=5, min_width=300):
            chosen = open_dropdown([], value=None, label="Search", elem_id="search-name")
            with gr.Row():
                stop = gr.Button("Stop", variant="stop", elem_id="search-stop")
                resume = gr.Button("Go on", elem_id="search-resume")
            page = _build_page()
    _bind_saving(state, worker, chosen)
    _bind_watching(worker, chosen, page, state.page.setdefault("on_load", []))
    made = gr.Textbox(visible="hidden", label="Search")
    start.click(search_starter(state, worker), list(form.values()), made, api_name="search_start").success(
        lambda name: gr.update(choices=worker.store.list(), value=name), made, chosen, api_visibility="private"
    )
    _bind_buttons(worker, chosen, stop, resume)


def _bind_buttons(worker: SearchWorker, chosen: Any, stop: Any, resume: Any) -> None:
    """Stop and go on."""

    def search_stop(name: str) -> str:
        """Stop a search at its next transformer call; what it has finished is kept. Returns its name.

        Args:
            name: Name of the search.
        """
        with messages():
            worker.stop(name)
        return name

    def search_resume(name: str) -> str:
        """Go on with a search that was stopped. Returns its name.

        Args:
            name: Name of the search.
        """
        with messages():
            worker.resume(name)
        return name

    same = gr.Textbox(visible="hidden", label="Search")
    stop.click(search_stop, chosen, same, api_name="search_stop")
    resume.click(search_resume, chosen, same, api_name="search_resume")


def _build_page() -> dict[str, Any]:
    """What a search is shown with."""
    return {
        "status": gr.HTML("", elem_id="search-status"),
        "plot": gr.Image(
            label="Front of the verified plans, and what the measurements predict",
            alt_text="Left: PSNR over density of each verified plan. Right: predicted error over cost",
            show_label=False,
            interactive=False,
            format="png",
            buttons=["fullscreen", "download"],
            elem_id="search-plot",
        ),
        "rounds": gr.Dataframe(headers=ROUND_HEADERS, label="Rounds", interactive=False, elem_id="search-rounds"),
    }


def _bind_watching(worker: SearchWorker, chosen: Any, page: dict[str, Any], on_load: list[Any]) -> None:
    """The page follows the search that is chosen, and the list of searches."""
    seen = gr.State("")
    outputs = [page["status"], page["plot"], page["rounds"], seen]

    def search_show(name: str | None) -> tuple[Any, ...]:
        """Where a search stands: status, picture of the front, and its rounds.

        Args:
            name: Name of the search.
        """
        if not name:
            return "", None, [], ""
        with messages():
            return show_search(worker, name)

    def watch(name: str | None, last: str) -> tuple[Any, ...]:
        with messages():
            if not name or signature(worker, name) == last:
                return (gr.skip(),) * len(outputs)
            return show_search(worker, name)

    def newest() -> Any:
        names = worker.store.list()
        return gr.update(choices=names, value=worker.active or next(iter(names), None))

    chosen.change(search_show, chosen, outputs, api_name="search_show", show_progress="hidden")
    gr.Timer(WATCH_SECONDS).tick(
        watch, [chosen, seen], outputs, api_visibility="private", show_progress="hidden", concurrency_limit=None
    )
    on_load.append((newest, None, chosen))

    def search_list() -> list[str]:
        """Names of all searches, newest first."""
        return worker.store.list()

    api(search_list, api_name="search_list")


def signature(worker: SearchWorker, name: str) -> str:
    """Changes whenever a page would show something else of a search; reads no file."""
    folder, job = worker.store.folder(name), worker.job(name)
    now = None if job is None else (job.status, job.label, job.step, int(job.view().seconds) // 5)
    files = sorted(path.name for part in (folder, folder / "run", folder / "rounds") for path in part.glob("*"))
    return repr((name, files, now))


def show_search(worker: SearchWorker, name: str) -> tuple[Any, ...]:
    """Status, picture, rows and signature of a search."""
    from fastdit_ui.inside_plots import picture
    from fastdit_ui.search_plot import plot_search, round_rows

    # Before anything is read: what changes meanwhile must look new to the page.
    now = signature(worker, name)
    view, job = worker.store.view(name), worker.job(name)
    prompts = len(view.request.prompts)
    asked = f"{AIM_SHORT[view.request.aim]} {view.request.value:g} on {prompts} prompt{'s' * (prompts > 1)}"
    lines = [f"{asked} of {view.request.model}: {worker.status(name)}"]
    if view.error:
        lines.append(view.error)
    if view.plan is not None:
        kept = {
            True: "keeps its promise",
            False: "does NOT keep the promise: the best that was found",
            None: "is in budget",
        }
        figures = ", ".join(f"{FIGURES.get(key, key)} {value:.4g}" for key, value in view.plan.measured.items())
        lines.append(f"The plan {kept[view.plan.keeps_promise]}: {figures}.")
    status = views.notes(lines) + ("" if job is None else views.progress(worker.view(name)))
    return status, picture(plot_search(view)), round_rows(view), now


def _bind_saving(state: AppState, worker: SearchWorker, chosen: Any) -> None:
    """Keep a plan under a name, and use it in Generate."""
    with gr.Row():
        which = gr.Textbox(RESULT, label="Which plan", info=f"'{RESULT}', or the plan of a round by its digits")
        name = gr.Textbox("", label="Name of the plan", placeholder="e.g. tiny-30db", elem_id="search-plan-name")
        save = gr.Button("Save the plan", elem_id="search-save")
        use = gr.Button("Save and use in Generate", elem_id="search-use")
    saved = gr.Textbox("", label="Saved plan", interactive=False, elem_id="search-saved")

    def search_save_plan(search: str, plan: str, name: str) -> str:
        """Save a plan of a search on this server: the result, or that of a round. Returns its name.

        Args:
            search: Name of the search.
            plan: "the result", or the digits of a round's plan.
            name: What the plan is to be called.
        """
        with messages():
            state.plans.save(worker.plan(search, None if plan.strip() in ("", RESULT) else plan.strip()), name.strip())
        return name.strip()

    inputs = [chosen, which, name]
    save.click(search_save_plan, inputs, saved, api_name="search_save_plan")
    event = use.click(search_save_plan, inputs, saved, api_visibility="private")
    choice = state.page.get("plan_choice")
    if choice is not None:
        # Only after a plan was saved: a bad name leaves the page where it is.
        event.success(
            lambda name: (gr.update(choices=state.plans.list(), value=name), "plan"),
            saved,
            [choice, state.page["plan_source"]],
            api_visibility="private",
        ).then(lambda: gr.update(selected="generate"), None, state.page["tabs"], api_visibility="private")
