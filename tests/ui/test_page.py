"""The real page with the bundled model, in headless Chromium."""

import re

import pytest
from page_actions import attach, number, say
from ui_stub import PROMPT, SMALL

from fastdit_pipelines.engine import PipelineEngine


class SmallEngine(PipelineEngine):
    """The bundled model with a small clip as its default."""

    def call_defaults(self, model):
        return {
            **super().call_defaults(model),
            "width": SMALL["width"],
            "height": SMALL["height"],
            "num_frames": 9,
            "num_inference_steps": SMALL["num_inference_steps"],
        }


@pytest.fixture(scope="module")
def server(start):
    return start(SmallEngine())


def test_a_bad_plan_is_told_and_the_page_goes_on_to_generate(visit, server, tmp_path):
    page = visit()
    bad = tmp_path / "broken.json"
    bad.write_text('{"format": "fastdit-plan", "version": 99}')
    page.get_by_label("Prompt", exact=True).first.fill(PROMPT)
    page.locator("#generate-source").get_by_text("Plan").click()
    attach(page, "#generate-plan-file", bad)
    page.locator("#generate-run").click()
    alert = page.locator("#generate-status [role=alert]")
    alert.wait_for()
    assert "broken.json" in alert.text_content()
    assert "missing" in alert.text_content()
    assert "/" not in alert.text_content()

    page.locator("#generate-source").get_by_text("Dial").click()
    page.locator("#generate-run").click()
    say(page, "#generate-figures", "Seed used")
    page.locator("#generate-video video[src]").wait_for()
    run = server.state.runs.list()[0]
    assert run.name in page.locator("#generate-figures").text_content()
    assert (run.report["prompt"], run.report["title"]) == (PROMPT, "Balanced")
    # Too short to skip anything, which must not be passed over in silence.
    assert "Nothing was skipped" in page.locator("#generate-figures").text_content()
    page.wait_for_function("document.querySelector('#generate-video video').duration > 0")


def test_cancel_stops_a_run_and_leaves_nothing(visit, server):
    page = visit()
    before = len(server.state.runs.list())
    page.locator("#generate-video-settings > button").click()
    number(page, "#generate-steps", 100)
    page.get_by_label("Prompt", exact=True).first.fill(PROMPT)
    page.locator("#generate-run").click()
    say(page, "#generate-status", "of 100")
    say(page, "#generate-status", "to go")
    page.locator("#generate-cancel").click()
    say(page, "#generate-status", "Cancelled")
    assert server.state.jobs.counts() == (0, 0)
    assert len(server.state.runs.list()) == before


PIXELS = """pane => {
  const canvas = document.querySelectorAll('.fd-panes canvas')[pane];
  return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def test_compare_scrub_and_play(visit, server):
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-prompt textarea").fill(PROMPT)
    page.locator("#compare-run").click()
    say(page, "#compare-figures", "PSNR against dense")
    page.locator(".fd-player[data-ready]").wait_for()
    slider = page.locator(".fd-frame")
    assert slider.get_attribute("max") == "8"
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.locator('.fd-player[data-drawn="3"]').wait_for()
    third = page.evaluate(PIXELS, 0)
    assert any(third[i] for i in range(0, len(third), 4)), "the canvas is black"
    assert "frame 4 of 9" in slider.get_attribute("aria-valuetext")
    slider.evaluate("one => { one.value = 8; one.dispatchEvent(new Event('input', {bubbles: true})); }")
    page.locator('.fd-player[data-drawn="8"]').wait_for()
    assert page.evaluate(PIXELS, 0) != third
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("!['8', '3'].includes(document.querySelector('.fd-player').dataset.frame)")
    page.get_by_role("button", name="Pause").click()

    # The same settings but for the dial: the dense run is there already.
    number(page, "#compare-dial", 0)
    page.locator("#compare-run").click()
    say(page, "#compare-figures", "Fastest")
    assert "an earlier dense run" in page.locator("#compare-figures").text_content()
    first, second = server.state.runs.list()[1].report, server.state.runs.list()[0].report
    assert (first["dense_run_reused"], second["dense_run_reused"]) == (False, True)
    assert first["dense_seconds"] == second["dense_seconds"]


def test_two_users_at_once_wait_for_each_other_and_get_their_own(visit, server):
    pages = [visit(), visit()]
    for seed, page in enumerate(pages, 41):
        page.locator("#generate-video-settings > button").click()
        number(page, "#generate-seed", seed)
        number(page, "#generate-steps", 6)
        page.get_by_label("Prompt", exact=True).first.fill(f"{PROMPT} {seed}")
    for page in pages:
        page.locator("#generate-run").click()
    say(pages[1], "#generate-status", "In the queue")
    for seed, page in enumerate(pages, 41):
        say(page, "#generate-figures", "Seed used")
        assert re.search(rf"Seed used{seed}(?!\d)", page.locator("#generate-figures").text_content())
    reports = {run.report["seed"]: run.report["prompt"] for run in server.state.runs.list()[:2]}
    assert reports == {seed: f"{PROMPT} {seed}" for seed in (41, 42)}


def test_a_reload_keeps_the_library(visit, server):
    page = visit()
    page.reload()
    page.get_by_role("tab", name="Library").click()
    newest = server.state.runs.list()[0].name
    page.locator("#library-runs").get_by_text(newest).locator("visible=true").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_everything_has_a_name(visit, scheme):
    page = visit(width=390, height=844)
    page.emulate_media(color_scheme=scheme)
    # Gradio fetches the script that fills its examples after it has drawn their buttons.
    examples = "[...document.querySelectorAll('.gallery-item')]"
    page.wait_for_function(f"{examples}.length && {examples}.every(one => one.innerText.trim())")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select')].filter(one =>
            one.offsetParent !== null && one.type !== 'hidden' && one.type !== 'file' &&
            !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.title ||
              one.innerText?.trim() || one.labels?.length)
        ).map(one => one.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []
