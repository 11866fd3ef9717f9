"""Starting and stopping the server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from fastdit.errors import ConfigError
from fastdit_ui.app import build_app
from fastdit_ui.engine import Engine
from fastdit_ui.mcp_tools import complete_tools, keep_uploads_in
from fastdit_ui.settings import LOCALHOST, ServerSettings
from fastdit_ui.state import AppState

STATIC = Path(__file__).parent / "static"
# Fonts of the system: the page works without a network.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACE = ("ui-monospace", "Menlo", "Consolas", "monospace")
FIRST_PORT, NUM_PORTS = 7860, 100
LAUNCHES = 5


class Server:
    """A running server.

    Args:
        settings: What it is started with.
        engine: Where pipelines come from.

    Attributes:
        url: Its address on this machine.
        share_url: Its public address with `share`, else `None`.
    """

    def __init__(self, settings: ServerSettings, engine: Engine) -> None:
        if settings.mcp and find_spec("mcp") is None:
            raise ConfigError("mcp: the package mcp is missing: pip install 'fastdit[mcp]'")
        # Gradio would sum up the times of all events, with pandas, after every event.
        os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
        self.state = AppState(settings, engine)
        self.page = build_app(self.state)
        # Waiting requests hold a place in the queue each, so there must be room for those that do not wait.
        self.page.queue(default_concurrency_limit=None)
        try:
            self.url, self.share_url = _launch(self.page, settings)
            if settings.mcp:
                complete_tools(self.page)
        except BaseException:
            self.state.close()
            raise
        # Gradio would take more from the environment.
        self.page.allowed_paths = []

    def close(self) -> None:
        """Stop serving and end the worker."""
        self.page.close(verbose=False)
        self.state.close()


def _launch(page: gr.Blocks, settings: ServerSettings) -> tuple[str, str | None]:
    """Start serving; the addresses here and outside."""
    for _ in range(LAUNCHES):
        arguments = launch_arguments(settings)  # outside: a port in use is an error of ours, and a ValueError too
        try:
            _, url, share_url = page.launch(**arguments, prevent_thread_lock=True)
            return url, share_url
        except OSError as error:
            raise ConfigError(f"port={settings.port}: {error}") from error
        except ValueError:
            # Gradio waits three seconds for its own answer, which a busy machine may not give in time.
            page.close(verbose=False)
    raise ConfigError(
        f"host={settings.host!r}: the server does not reach itself there; check proxy settings, or whether the machine "
        "is overloaded"
    )


def launch_arguments(settings: ServerSettings) -> dict[str, Any]:
    """How Gradio is launched: what it may serve and to whom is said here, whatever the environment says."""
    return {
        "server_name": settings.host,
        "server_port": _free_port(settings),
        "share": settings.share,
        "mcp_server": settings.mcp,
        "allowed_paths": [],
        "max_file_size": settings.max_upload_mb << 20,
        "max_threads": settings.max_waiting + 64,
        "show_error": False,
        "strict_cors": True,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "footer_links": ["api", "settings"],
        "quiet": True,
        "theme": _theme(),
        "css": (STATIC / "app.css").read_text(encoding="utf-8"),
        "inbrowser": False,
    }


def _theme() -> gr.themes.Base:
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=list(FONTS), font_mono=list(MONOSPACE))
    # On the lighter shades that Gradio takes, text has less than the 4.5 : 1 that is readable for all.
    fill = {"button_primary_background_fill": "*primary_600", "button_primary_background_fill_hover": "*primary_700"}
    both = {**fill, "button_primary_text_color": "white"}
    light = {"body_text_color_subdued": "*neutral_500", "color_accent": "*primary_600"}
    stop = {"button_cancel_background_fill": "#dc2626", "button_cancel_background_fill_hover": "#b91c1c"}
    return theme.set(**both, **light, **stop, **{f"{name}_dark": value for name, value in both.items()})


def serve(settings: ServerSettings, engine: Engine, announce: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        settings: What the server is started with.
        engine: Where pipelines come from.
        announce: Called with the lines that tell where the server is.
    """
    folder = tempfile.mkdtemp(prefix="fastdit-ui-")
    # Uploads and copies on their way to browsers, private to this server and gone with it.
    os.environ["GRADIO_TEMP_DIR"] = folder
    keep_uploads_in(folder)
    try:
        server = Server(settings, engine)
        announce(f"{server.url} (runs in {settings.output_dir})")
        if settings.host != LOCALHOST:
            announce("other machines can reach this server; it asks for no password")
        if server.share_url:
            announce(f"public link {server.share_url}; whoever has it can use this machine")
        try:
            server.page.block_thread()
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(settings: ServerSettings) -> int:
    """The first port that is free, from the one asked for."""
    import socket

    first = FIRST_PORT if settings.port is None else settings.port
    # A port that was asked for is taken or refused, never another one.
    for port in range(first, first + NUM_PORTS) if settings.port is None else (first,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"port={first}: it is in use; choose another one with --port")
