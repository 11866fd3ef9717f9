"""A dropdown whose choices come after the page was built, such as the names of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gradio as gr


def open_dropdown(choices: Sequence[Any], *, kind: Literal["string", "integer"] = "string", **settings: Any) -> Any:
    """A dropdown that takes other values too; the function that is given them must check them.

    Args:
        choices: What it offers first.
        kind: Type of its values, as the API tells it.
        settings: Further arguments of `gr.Dropdown`.
    """
    made = gr.Dropdown(list(choices), allow_custom_value=True, **settings)
    # Gradio would list the first choices as the only ones, and MCP tools would then refuse all others.
    made.api_info = lambda: {"type": kind}
    return made
