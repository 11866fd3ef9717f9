"""Servers and browsers for the tests of the app."""

import os
import shutil
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="the app needs Gradio: pip install 'fastdit[ui]'")

# Before Gradio is imported anywhere: it would ask the network for news.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
PATIENCE = 120_000


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start servers of this module; they are stopped at its end."""
    from fastdit_ui.server import Server
    from fastdit_ui.settings import ServerSettings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("served")))
        servers = []

        def begin(engine, **settings):
            settings = {"output_dir": tmp_path_factory.mktemp("runs"), **settings}
            servers.append(Server(ServerSettings(**settings), engine))
            return servers[-1]

        yield begin
        for server in servers:
            server.close()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("the page's tests need a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(server, browser):
    """Open pages, each of a user of its own; nothing may be asked of other machines, no script may fail."""
    contexts, asked, faults = [], set(), []

    def visit(width=1280, height=1000):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.add(urlsplit(request.url)))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        page.locator("#generate-prompt textarea").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert {one.hostname for one in asked if one.scheme.startswith("http")} == {"127.0.0.1"}
    assert faults == []
