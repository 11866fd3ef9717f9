"""Makes the screenshots of this folder: runs the app with the bundled model and drives it in headless Chromium.

    python docs/ui/screenshots.py [--output docs/ui] [--tabs generate compare inside search library]

Takes about two minutes on a quiet core. Needs fastdit[dev] and a Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

TABS = {"generate": "Generate", "compare": "Compare", "inside": "Look inside", "search": "Search", "library": "Library"}
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
PROMPT = "a red circle moving left on a dark background"
PATIENCE = 900_000
# The shortest clip in which something is skipped.
NUM_FRAMES = 29


def main() -> None:
    """Run the app, use it, and take pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tabs", nargs="+", choices=TABS, default=list(TABS))
    parser.add_argument("--runs", type=Path, help="output folder of an earlier call, to go on with its runs")
    options = parser.parse_args()
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp()
    from playwright.sync_api import sync_playwright

    from fastdit_pipelines.engine import PipelineEngine
    from fastdit_ui.server import Server
    from fastdit_ui.settings import ServerSettings

    class ShortEngine(PipelineEngine):
        """The bundled model with a shorter clip as its default."""

        def call_defaults(self, model: str) -> dict[str, Any]:
            return {**super().call_defaults(model), "num_frames": NUM_FRAMES, "num_inference_steps": 6}

    server = Server(ServerSettings(output_dir=options.runs or tempfile.mkdtemp()), ShortEngine())
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(PATIENCE)
            for tab in options.tabs:
                page.goto(server.url)
                open_tab(page, tab)
                USES[tab](page)
                take(page, tab, options.output)
            browser.close()
    finally:
        server.close()


def open_tab(page: Any, tab: str) -> None:
    """Open a tab, from the overflow menu where the page is narrow."""
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name=TABS[tab], exact=True).click()


def take(page: Any, tab: str, folder: Path) -> None:
    """Pictures of the page as it is: both widths, light and dark."""
    for kind, (width, height) in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
            page.wait_for_timeout(500)
            path = folder / f"{tab}-{kind}-{scheme}.png"
            page.screenshot(path=path, full_page=True, animations="disabled")
            # A palette: a third of the size, and text stays sharp.
            Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)
    page.evaluate("document.body.classList.remove('dark')")


def use_generate(page: Any) -> None:
    """One video at the dial's middle."""
    page.locator("#generate-prompt textarea").fill(PROMPT)
    page.locator("#generate-run").click()
    page.locator("#generate-figures").get_by_text("Seed used").wait_for()
    page.wait_for_timeout(3000)


def use_compare(page: Any) -> None:
    """One comparison, at a frame in the middle."""
    page.locator("#compare-prompt textarea").fill(PROMPT)
    page.locator("#compare-run").click()
    page.locator(".fd-player[data-ready]").wait_for()
    page.locator(".fd-frame").evaluate(
        "one => { one.value = 14; one.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.locator('.fd-player[data-drawn="14"]').wait_for()


def use_inside(page: Any) -> None:
    """A recorded run, with a patch in the middle of the picture."""
    page.locator("#inside-start").click()
    page.locator("#inside-mask img").wait_for()
    page.wait_for_timeout(3000)


def use_search(page: Any) -> None:
    """A search of some seconds, on the shortest clip in which heads differ."""
    page.locator("#search-prompts textarea").fill(PROMPT)
    sizes = page.get_by_role("button", name="Size and rounds")
    sizes.click()
    values = {"Width, pixels": 64, "Height, pixels": 64, "Duration, seconds": 1.4, "Verification rounds at most": 4}
    for label, value in values.items():
        page.get_by_label(label).locator("visible=true").fill(str(value))
    page.locator("#search-steps input[type=number]").fill("2")
    page.keyboard.press("Tab")
    sizes.click()
    page.locator("#search-start").click()
    page.locator("#search-status").get_by_text("The plan").wait_for()
    page.wait_for_timeout(3000)


def use_library(page: Any) -> None:
    """The newest run."""
    name = re.compile(r"^\d{8}-\d{6}-")
    page.locator("#library-runs").get_by_text(name).locator("visible=true").first.click()
    page.locator("#library-figures table").wait_for()
    page.wait_for_timeout(2000)


USES = {
    "generate": use_generate,
    "compare": use_compare,
    "inside": use_inside,
    "search": use_search,
    "library": use_library,
}
if __name__ == "__main__":
    main()
