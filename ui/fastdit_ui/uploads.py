"""Files that pages and clients give: uploads alone, which the server's limit of size holds for."""

from __future__ import annotations

from typing import Any

from fastdit_ui.messages import shown


def uploads_only(component: Any) -> Any:
    """Let a component refuse addresses, which Gradio would fetch whatever their size; returns it."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if str(path).lower().startswith(("http:", "https:")):
            raise shown("a file is given as an address: accepted are uploads; upload the file itself")
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload
    return component
