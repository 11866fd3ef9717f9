"""The page: five tabs, each built by its own module."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from fastdit_ui.state import AppState


@dataclass(frozen=True)
class TabEntry:
    """A tab.

    Args:
        id: Its id, also the fragment that opens it.
        title: What it is called.
        module: Module with `build(state) -> None`, called inside the tab.
    """

    id: str
    title: str
    module: str


# In the order of building: later tabs may use what earlier ones left in `state.page`.
TABS = (
    TabEntry("generate", "Generate", "fastdit_ui.generate_tab"),
    TabEntry("compare", "Compare", "fastdit_ui.compare_tab"),
    TabEntry("inside", "Look inside", "fastdit_ui.look_inside"),
    TabEntry("search", "Search", "fastdit_ui.search_tab"),
    TabEntry("library", "Library", "fastdit_ui.library"),
)


def build_app(state: AppState) -> gr.Blocks:
    """The page of a server; starts nothing."""
    builders: dict[str, Callable[[AppState], None]] = {
        tab.id: importlib.import_module(tab.module).build for tab in TABS if importlib.util.find_spec(tab.module)
    }
    with gr.Blocks(title="fastdit", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# fastdit\nSee what sparse attention skips, and what it costs.", elem_id="heading")
        state.page["library_changed"] = gr.State(0)
        with gr.Tabs(elem_id="tabs") as tabs:
            state.page["tabs"] = tabs
            for tab in TABS:
                if tab.id in builders:
                    with gr.Tab(tab.title, id=tab.id, elem_id=f"tab-{tab.id}"):
                        builders[tab.id](state)
        for fill, inputs, outputs in state.page.pop("on_load", []):
            page.load(fill, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private")
        # Nobody waits any more for what a closed page had queued; what runs goes on into the library.
        page.unload(_waiting_dropper(state))
    return page


def _waiting_dropper(state: AppState) -> Callable[[gr.Request], None]:
    def drop_waiting(request: gr.Request) -> None:
        state.jobs.cancel_owner(str(request.session_hash), waiting_only=True)

    return drop_waiting
