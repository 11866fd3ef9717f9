"""What users do on a page."""


def say(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
    )


def number(page, selector, value):
    field = page.locator(f"{selector} input[type=number]")
    field.fill(str(value))
    field.press("Tab")
