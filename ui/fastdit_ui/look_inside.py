"""The tab Look inside: record a run once, then see what each patch keeps, pools and drops, without running again."""

from __future__ import annotations

from typing import Any

import gradio as gr

from fastdit_ui import views
from fastdit_ui.inside_answers import RunReader, describe_run, site_of, whole
from fastdit_ui.inside_form import bind_recording, build_inside_form
from fastdit_ui.messages import messages
from fastdit_ui.open_dropdown import open_dropdown
from fastdit_ui.recording import recorded_names
from fastdit_ui.state import AppState

PATCH_HEADERS = ["keys", "share of keys", "share of attention"]


def build(state: AppState) -> None:
    """Build the tab."""
    reader = RunReader(state)
    gr.Markdown("Record one run, then click a patch: which patches does it attend to, and which of them are skipped?")
    run = open_dropdown([], value=None, label="Recorded run", elem_id="inside-run", render=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            bind_recording(state, build_inside_form(state), run)
        with gr.Column(scale=5, min_width=300):
            run.render()
            pages = _build_pages()
    _bind_run(state, reader, run, pages)
    _bind_patch(reader, run, pages)

    def newest() -> Any:
        names = recorded_names(state.runs)
        return gr.update(choices=names, value=next(iter(names), None))

    state.page["inside_run"] = run
    # A page that is opened shows the newest run.
    state.page.setdefault("on_load", []).append((newest, None, run))
    state.page["library_changed"].change(
        lambda: gr.update(choices=recorded_names(state.runs)),
        None,
        run,
        api_visibility="private",
        show_progress="hidden",
    )


def _bind_run(state: AppState, reader: RunReader, run: Any, pages: dict[str, Any]) -> None:
    """Show a run when it is chosen."""
    outputs = [*pages["site"], pages["density"], pages["steps"], pages["figures"]]
    seen = gr.State("")
    everything = [*outputs, *_patch_outputs(pages), seen]

    def inside_run(name: str) -> list[Any]:
        """Choices, density by layer, head and phase, and recall over the steps of a recorded run.

        Args:
            name: A recorded run, as look_inside returned it.
        """
        with messages():
            return _show_run(reader, name)

    def show_run(name: str | None, last: str) -> list[Any]:
        if not name or name == last:
            return [gr.skip()] * len(everything)
        with messages():
            site, patch = reader.middle_of(name)
            return [*_show_run(reader, name), *_show_patch(reader, name, site, 0, patch), name]

    with gr.Column(visible=False):
        gr.Button().click(inside_run, run, outputs, api_name="inside_run")
    # Tabs that are not open yet do not notice that their run has changed, so opening one asks too.
    for trigger in (run.change, state.page["tabs"].select):
        trigger(show_run, [run, seen], everything, api_visibility="private", show_progress="hidden")


def _bind_patch(reader: RunReader, run: Any, pages: dict[str, Any]) -> None:
    """Show a patch when its place is typed, or when it is clicked on either picture."""
    inputs, outputs = [run, *pages["site"]], _patch_outputs(pages)

    def inside_patch(
        name: str, transformer: int, layer: int, step: int, head: int, frame: float, row: float, column: float
    ) -> tuple[Any, ...]:
        """What a query patch sees in one head: its keys over the frames, its attention, and the shares of both.

        Args:
            name: A recorded run.
            transformer: One that was recorded, from 0.
            layer: One that was recorded.
            step: One that was recorded.
            head: From 0.
            frame: Latent frame of the query patch.
            row: Its row of patches.
            column: Its column.
        """
        with messages():
            return _show_patch(reader, name, (transformer, layer, step), head, (frame, row, column))

    def clicked(name: str, transformer: Any, layer: Any, step: Any, event: gr.SelectData) -> list[Any]:
        from fastdit_ui.patch_view import sheet_of

        with messages():
            call, _ = reader.call(name, site_of(transformer, layer, step))
            patch = sheet_of(call).patch_at(*event.index)
        return [gr.skip()] * 3 if patch is None else list(patch)

    gr.on(
        [one.input for one in pages["site"]],
        inside_patch,
        inputs,
        outputs,
        api_name="inside_patch",
        show_progress="minimal",
        trigger_mode="always_last",
    )
    for picture in (pages["mask"], pages["attention"]):
        picture.select(
            clicked, [run, *pages["site"][:3]], pages["site"][4:], api_visibility="private", show_progress="hidden"
        ).then(inside_patch, inputs, outputs, api_visibility="private", show_progress="hidden")


def _patch_outputs(pages: dict[str, Any]) -> list[Any]:
    return [pages[name] for name in ("mask", "attention", "legend", "says", "shares")]


def _build_pages() -> dict[str, Any]:
    """What a recorded run is shown with."""
    pages: dict[str, Any] = {}
    with gr.Row():
        names = ("Transformer", "Layer", "Step", "Head")
        chosen = [
            open_dropdown([], kind="integer", label=name, min_width=90, elem_id=f"inside-{name.lower()}")
            for name in names
        ]
        patch = [
            gr.Number(0, label=name.capitalize(), precision=0, minimum=0, min_width=90, elem_id=f"inside-{name}")
            for name in ("frame", "row", "column")
        ]
    pages["site"] = [*chosen, *patch]
    pages["says"] = gr.Markdown("Click a patch, or type its place above.", elem_id="inside-says")
    # The label would lie on the first frames.
    plain: dict[str, Any] = {
        "interactive": False,
        "format": "png",
        "buttons": ["fullscreen", "download"],
        "show_label": False,
    }
    with gr.Tabs():
        with gr.Tab("What is skipped"):
            pages["mask"] = gr.Image(
                label="Keys of the query over the frames (click to choose a query)",
                alt_text="All latent frames; keys that the query keeps, pools and drops are marked as the legend says",
                elem_id="inside-mask",
                **plain,
            )
            pages["legend"] = gr.HTML("", elem_id="inside-legend")
        with gr.Tab("Attention"):
            pages["attention"] = gr.Image(
                label="Exact attention of the query over the frames, square-root scale (click to choose a query)",
                alt_text="All latent frames; the brighter a patch, the more the query attends to it",
                elem_id="inside-attention",
                **plain,
            )
        with gr.Tab("Density"):
            pages["density"] = gr.Image(
                label="Density by layer, head and phase", alt_text="Heat-maps of density, one per phase", **plain
            )
        with gr.Tab("Recall and age"):
            pages["steps"] = gr.Image(
                label="Recall of masks over the steps, and their age", alt_text="Curves of recall and age", **plain
            )
        with gr.Tab("Run"):
            pages["figures"] = gr.HTML("")
    pages["shares"] = gr.Dataframe(headers=PATCH_HEADERS, label="Keys of this query", interactive=False)
    return pages


def _show_run(reader: RunReader, name: str) -> list[Any]:
    from fastdit_ui.inside_plots import picture, plot_density, plot_steps

    record, run = reader.run(name)
    choices = reader.choices(name)
    (transformer, layer, step), center = reader.middle_of(name)
    lists = (choices.transformers, choices.layers, choices.steps, list(range(choices.heads)))
    values = (transformer, layer, step, 0)
    site = [gr.update(choices=some, value=value) for some, value in zip(lists, values, strict=True)]
    patch = [gr.update(value=one, maximum=size - 1) for one, size in zip(center, choices.grid, strict=True)]
    density = plot_density(run.phase_density(transformer), run.ends, run.names[transformer])
    steps = plot_steps(run.recall[transformer], run.age[transformer], layer, run.names[transformer])
    figures = views.table(describe_run(record, run), "Recorded run")
    figures += views.preformatted(str(record.report.get("summary", "")))
    return [*site, *patch, picture(density), picture(steps), figures]


def _show_patch(
    reader: RunReader, name: str, site: tuple[Any, Any, Any], head: Any, patch: tuple[Any, Any, Any]
) -> tuple[Any, ...]:
    from fastdit_ui.patch_view import view_patch

    frame, row, column = (whole(*one) for one in zip(("frame", "row", "column"), patch, strict=True))
    call, frames = reader.call(name, site_of(*site))
    view = view_patch(call, frames, whole("head", head), (frame, row, column))
    rows = [[one["keys"], f"{one['share of keys']:.2%}", f"{one['attention']:.2%}"] for one in view.rows]
    return view.levels, view.attention, view.legend, view.says, rows
