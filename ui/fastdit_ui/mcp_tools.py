"""The endpoints as MCP tools: what Gradio's server of tools lacks for those of this app."""

from __future__ import annotations

from types import MethodType
from typing import Any

import gradio as gr

from fastdit.errors import ConfigError
from fastdit_ui.messages import INTERNAL


def keep_uploads_in(folder: str) -> None:
    """Where files go that tools are given as data; to be called before serving."""
    import gradio.mcp

    # Read from the environment when Gradio was imported, before the folder was made.
    gradio.mcp.DEFAULT_TEMP_DIR = folder


def complete_tools(page: gr.Blocks) -> None:
    """Let each result of a tool be a content of its own, so that pictures arrive as pictures.

    Args:
        page: Launched with `mcp_server=True`.

    Raises:
        ConfigError: Gradio could not offer the tools.
    """
    server = page.mcp_server_obj
    if server is None:
        page.close(verbose=False)
        raise ConfigError(f"mcp: {page.mcp_error or 'Gradio offers no tools'}: pip install 'fastdit[mcp]'")
    # Gradio makes one text of all results, unless the client asks for news of the progress.
    server._execute_tool_without_progress = MethodType(_results, server)


async def _results(_: Any, job: Any) -> list[Any]:
    """The results of a job, one by one."""
    async for update in job:
        if update.type == "output" and update.final:
            if not update.success:
                raise RuntimeError(update.outputs.get("error") or INTERNAL)
            results: list[Any] = update.outputs["data"]
            return results
    raise job.exception() or RuntimeError(INTERNAL)
