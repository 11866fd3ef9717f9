"""The tabs Look inside, Search and Library in a browser: record, click a patch, open, delete, reload."""

import re

import pytest
from tiny_engine import TinyEngine

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def server(start):
    return start(TinyEngine())


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(WAIT_MS)
    opened = context.new_page()
    opened.goto(server.url)
    yield opened
    context.close()


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).first.click()


def test_record_click_a_patch_and_delete_the_run(page, server):
    open_tab(page, "Look inside")
    page.locator("#inside-start").click()
    picture = page.locator("#inside-mask img")
    picture.wait_for()
    page.locator("#inside-says", has_text="Layer").wait_for()
    before = page.locator("#inside-says").inner_text()
    # Frame 2 of 3, row 1 of 4, column 4 of 6, through the scale at which the browser shows the sheet.
    from fastdit_ui.frame_sheet import FrameSheet

    sheet = FrameSheet.of(3, 4, 6)
    top, left = sheet.corner(2)
    box = picture.bounding_box()
    scale = box["width"] / sheet.size[1]
    x, y = (left + 4.5 * sheet.cell) * scale, (top + 1.5 * sheet.cell) * scale
    picture.click(position={"x": x, "y": y})
    page.locator("#inside-says", has_text="frame 2, row 1, column 4").wait_for()
    assert page.locator("#inside-says").inner_text() != before
    assert page.locator("#inside-frame input").input_value() == "2"
    # A reload keeps the library.
    page.reload()
    open_tab(page, "Library")
    (name,) = (one.name for one in server.state.runs.list())
    page.locator("#library-runs").get_by_text(name).locator("visible=true").first.click()
    page.locator("#library-figures", has_text="a red circle").wait_for()
    page.locator("#library-delete").click()
    page.locator("#library-no").click()
    assert [one.name for one in server.state.runs.list()] == [name]
    page.locator("#library-delete").click()
    page.locator("#library-yes").click()
    page.locator("#library-yes").wait_for(state="hidden")
    assert server.state.runs.list() == []


def test_a_bad_field_is_a_message_and_breaks_nothing(page):
    open_tab(page, "Look inside")
    page.get_by_text("Size and what is recorded").click()
    page.get_by_label("Layers to record").fill("all of them")
    page.locator("#inside-start").click()
    page.get_by_text(re.compile("layers='all of them'")).first.wait_for()
    assert "Traceback" not in page.content()
