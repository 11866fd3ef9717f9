"""What users do on a page."""


def say(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
    )


def number(page, selector, value):
    field = page.locator(f"{selector} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def attach(page, selector, path):
    """Upload a file; again if the field, which has just appeared, did not listen yet."""
    name = page.locator(selector).get_by_text(path.name)
    for _ in range(6):
        page.locator(f"{selector} input[type=file]").set_input_files(path)
        try:
            name.wait_for(timeout=20_000)
            return
        except Exception as error:
            if "Timeout" not in str(error):
                raise
    raise AssertionError(f"{path.name} was not taken")
