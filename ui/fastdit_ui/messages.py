"""Errors on the way to the browser: what the user can act on, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from fastdit.errors import FastDitError

log = logging.getLogger("fastdit.ui")
INTERNAL = "an internal error, noted in the server's log"


def shown(message: str) -> gr.Error:
    """The error that shows a message on the page."""
    return gr.Error(message, title="Not done", print_exception=False)


@contextmanager
def messages() -> Iterator[None]:
    """Turn errors inside the block into messages: those of fastdit in their own words, all others into one line."""
    try:
        yield
    except FastDitError as error:
        raise shown(str(error)) from None
    except gr.Error:
        raise
    except Exception:
        log.exception("a page's request failed")
        raise shown(INTERNAL) from None
