"""The page for those who read with effort or use no mouse: contrast in light and dark, and the keyboard alone."""

import pytest
from page_actions import say
from ui_stub import PROMPT, StubEngine

TABS = ("Generate", "Compare", "Look inside", "Search", "Library")
# Texts with less contrast to their ground than WCAG 2 asks for at level AA.
PALE = r"""() => {
  const parse = text => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)); };
  const ground = one => {
    const layers = [];
    for (let node = one; node; node = node.parentElement) layers.push(parse(getComputedStyle(node).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const texts = [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() &&
    [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && !one.closest('svg'));
  return texts.map(one => {
    const below = ground(one), style = getComputedStyle(one);
    const [a, b] = [light(over(parse(style.color), below)), light(below)].sort((x, y) => y - x);
    const text = one.textContent.trim().slice(0, 30);
    return [+((a + 0.05) / (b + 0.05)).toFixed(2), style.color, style.backgroundColor, text];
  }).filter(one => one[0] < 4.5);
}"""
FOCUS = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  const name = one.getAttribute('aria-label') || one.innerText || one.labels?.[0]?.innerText || '';
  const shown = style.outlineStyle !== 'none' || style.boxShadow !== 'none';
  return {tag: one.tagName, name: name.split('\\n')[0], shown};
}"""


@pytest.fixture(scope="module")
def server(start):
    return start(StubEngine())


@pytest.mark.parametrize("dark", [False, True])
def test_all_texts_can_be_read_in_light_and_dark(visit, dark):
    page = visit()
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).click()
        page.locator("[role=tab][aria-selected=true]", has_text=tab).first.wait_for()
        # Colours change over a moment.
        page.wait_for_timeout(500)
        assert page.evaluate(PALE) == [], tab


def test_the_keyboard_alone_makes_a_video_and_focus_is_always_seen(visit, server):
    page = visit()
    seen = []
    while not seen or seen[-1]["name"] != "Generate" or len(seen) == 1:
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUS))
        assert len(seen) < 60
        if seen[-1]["name"] == "Prompt":
            page.keyboard.type(PROMPT)
        if seen[-1]["name"].startswith("range slider"):
            page.keyboard.press("End")
    assert [one for one in seen if not one["shown"]] == []
    assert {one["name"] for one in seen} >= {*TABS, "Prompt", "Dial"}
    page.keyboard.press("Enter")
    say(page, "#generate-figures", "Seed used")
    assert server.state.runs.list()[0].report["title"] == "Dense"
