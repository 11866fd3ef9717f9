"""The tab Search in a browser with the bundled model: its front fills, it stops and goes on, and its plan is used."""

import pytest
from page_actions import number, say

from fastdit_pipelines.bundled_models import model_plans
from fastdit_pipelines.engine import PipelineEngine

PROMPT = "a red circle moving left on a dark background"
SIZE = {"width": 64, "height": 64, "num_frames": 17, "num_inference_steps": 2}
# Every picture of the front and every number of rounds that the page has shown.
WATCH = """() => {
  window.seen = {pictures: [], rows: []};
  const note = () => {
    const picture = document.querySelector('#search-plot img')?.src;
    // Rows of the table are no table rows, but every plan has its digits in an element of its own.
    const texts = [...document.querySelectorAll('#search-rounds :not(:has(*))')].map(one => one.textContent.trim());
    const rows = new Set(texts.filter(one => /^[0-9a-f]{16}$/.test(one))).size;
    if (picture && seen.pictures.at(-1) !== picture) seen.pictures.push(picture);
    if (seen.rows.at(-1) !== rows) seen.rows.push(rows);
  };
  const all = {childList: true, subtree: true, attributes: true, characterData: true};
  new MutationObserver(note).observe(document.body, all);
}"""


class ShortEngine(PipelineEngine):
    """The bundled model with the shortest clip in which heads differ as its default."""

    def call_defaults(self, model):
        return {**super().call_defaults(model), **SIZE}


@pytest.fixture(scope="module")
def server(start):
    return start(ShortEngine())


def test_a_search_is_watched_stopped_resumed_saved_and_used(visit, server):
    page = visit()
    page.get_by_role("tab", name="Search", exact=True).click()
    page.evaluate(WATCH)
    page.locator("#search-prompts textarea").fill(PROMPT)
    number(page, "#search-value", 30)
    page.get_by_text("Size and rounds").click()
    page.get_by_label("Verification rounds at most").fill("4")
    page.locator("#search-start").click()

    say(page, "#search-status", "running")
    page.locator("#search-plot img").wait_for()
    page.locator("#search-stop").click()
    say(page, "#search-status", ": stopped")
    (name,) = server.state.page["search_worker"].store.list()
    assert page.locator("#search-name input").input_value() == name
    assert server.state.jobs.counts() == (0, 0)
    assert server.state.page["search_worker"].store.view(name).plan is None

    page.locator("#search-resume").click()
    say(page, "#search-status", ": done")
    say(page, "#search-status", "The plan keeps its promise")
    rounds = server.state.page["search_worker"].store.view(name).progress.rounds
    page.wait_for_function("rounds => seen.rows.at(-1) === rounds", arg=len(rounds))
    seen = page.evaluate("seen")
    # Begun, stopped, under way and done are different pictures; the front grew while the page was watched.
    assert len(set(seen["pictures"])) >= 3
    assert seen["rows"][0] == 0
    assert page.locator("#search-rounds").get_by_text(rounds[0].digest).locator("visible=true").count() == 1

    # A bad name is told and leaves the page where it is.
    page.locator("#search-plan-name input, #search-plan-name textarea").fill("../mine")
    page.locator("#search-use").click()
    page.get_by_text("plan name").first.wait_for()
    page.locator("#search-plan-name input, #search-plan-name textarea").fill("tiny-30db")
    page.locator("#search-save").click()
    page.wait_for_function(
        "document.querySelector('#search-saved').querySelector('input, textarea').value === 'tiny-30db'"
    )
    assert server.state.plans.list() == sorted(["tiny-30db", *model_plans("tiny")])

    page.locator("#search-use").click()
    page.locator("#generate-run").wait_for()
    assert page.locator("#generate-source").get_by_label("Plan").is_checked()
    assert page.locator("#generate-plan input").input_value() == "tiny-30db"
    page.locator("#generate-prompt textarea").fill(PROMPT)
    page.locator("#generate-run").click()
    say(page, "#generate-figures", "tiny-30db")
    report = server.state.runs.list()[0].report
    assert (report["method"], report["title"]) == ("plan", "tiny-30db")
    assert report["density"] == pytest.approx(rounds[-1].density, abs=0.2)
    assert report["density"] < 1
