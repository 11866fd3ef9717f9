"""`fastdit ui`: the app in the browser."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastdit.errors import ConfigError


def ui(
    *,
    output_dir: Path = Path("fastdit-runs"),
    model: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("tiny",),
    port: int | None = None,
    host: str = "127.0.0.1",
    share: bool = False,
    mcp: bool = False,
    max_upload_mb: int = 20,
) -> None:
    """Open the app: generate, compare dense with sparse, look inside, search, and a library of runs.

    Args:
        output_dir: Folder for runs and plans; the only one the app writes to.
        model: What pages may run: "tiny", Diffusers folders, or Hub ids. The first is the default.
        port: Port; default the first free one from 7860.
        host: Address to bind to; the default is reached from this machine alone, 0.0.0.0 from all others too.
        share: Open a public link through Gradio's relay; whoever has it can use this machine.
        mcp: Offer the endpoints as MCP tools too.
        max_upload_mb: Largest upload, in megabytes.
    """
    if find_spec("gradio") is None:
        raise ConfigError("fastdit ui needs Gradio: pip install 'fastdit[ui]'")
    if mcp and find_spec("mcp") is None:
        raise ConfigError("--mcp needs the package mcp: pip install 'fastdit[mcp]'")
    from fastdit_pipelines.engine import PipelineEngine
    from fastdit_ui.server import serve
    from fastdit_ui.settings import ServerSettings

    settings = ServerSettings(
        output_dir=output_dir,
        models=model,
        host=host,
        port=port,
        share=share,
        mcp=mcp,
        max_upload_mb=max_upload_mb,
    )
    serve(settings, PipelineEngine(), lambda line: print(f"fastdit ui: {line}", flush=True))
