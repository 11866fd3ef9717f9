"""From a form or an API call to a job, and from the job to news of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import MISSING, fields, replace
from functools import partial
from typing import Any

import gradio as gr

from fastdit.errors import FastDitError
from fastdit_ui import views
from fastdit_ui.form import EXAMPLES
from fastdit_ui.jobs import Job, follow
from fastdit_ui.messages import INTERNAL, messages, shown
from fastdit_ui.request import FormValues, RunRequest, resolve
from fastdit_ui.snippets import as_command, as_python
from fastdit_ui.state import AppState
from fastdit_ui.work import RunResult

Work = Callable[[AppState, RunRequest, Job], RunResult]


async def begin(state: AppState, kind: str, work: Work, values: tuple[Any, ...], owner: str) -> Job:
    """Check what was asked for and queue it.

    Raises:
        FastDitError: It is not accepted, or the queue is full.
    """
    # Reading configurations and plans must not hold up other pages.
    request = await asyncio.to_thread(resolve, state, FormValues.of(values))
    return state.jobs.submit(kind, owner, partial(work, state, request))


async def run_on_page(
    state: AppState, kind: str, work: Work, values: tuple[Any, ...], owner: str
) -> AsyncIterator[tuple[str, RunResult | None]]:
    """Progress as HTML, and at the end the result. Errors are shown in the place of the progress."""
    try:
        with messages():
            job = await begin(state, kind, work, values, owner)
    except gr.Error as error:
        yield views.problem(error.message), None
        return
    async for view in follow(state.jobs, job):
        if view.status == "failed":
            yield views.problem(job.error or INTERNAL), None
        elif view.status == "done":
            yield views.progress(view), job.result
        else:
            yield views.progress(view), None


async def run_for_client(state: AppState, kind: str, work: Work, values: tuple[Any, ...], owner: str) -> RunResult:
    """The result, for endpoints.

    Raises:
        gr.Error: It failed or was cancelled; with a message for the client.
    """
    with messages():
        job = await begin(state, kind, work, values, owner)
    try:
        async for _ in follow(state.jobs, job):
            pass
    except asyncio.CancelledError:
        # The client has taken its request back.
        state.jobs.cancel(job)
        raise
    if job.status == "cancelled":
        raise shown("the job was cancelled")
    if job.status == "failed":
        raise shown(job.error or INTERNAL)
    result: RunResult = job.result
    return result


def snippets(state: AppState, compare: bool, *values: Any) -> tuple[str, str]:
    """The present settings as Python and as a command; a remark if they are not accepted."""
    given = FormValues.of(values)
    given = replace(given, random_seed=False, prompt=given.prompt or EXAMPLES[0])
    try:
        request = resolve(state, given)
    except FastDitError as error:
        remark = f"# {error}"
        return remark, remark
    return as_python(request), as_command(request, compare=compare)


def takes_form(function: Callable[..., Any], description: str) -> Callable[..., Any]:
    """Give `function(request, *values)` the names and defaults of `FormValues`, for the API and its documents."""
    parameters = [inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)]
    for field in fields(FormValues):
        # Defaults of the API are those of the components; only `None` must be said here.
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Any)
        )
    text = inspect.cleandoc(FormValues.__doc__ or "")
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {"request": gr.Request}
    function.__doc__ = f"{description}\n\n{text[text.index('Args:') :]}"
    return function


def owner_of(request: gr.Request) -> str:
    """Who a request comes from: the session of a page or of a client."""
    return str(request.session_hash)


def canceller(state: AppState, kind: str) -> Callable[..., None]:
    """What a Cancel button does: it stops the jobs of a kind that this page asked for."""

    def cancel_on_page(request: gr.Request) -> None:
        state.jobs.cancel_owner(owner_of(request), kind)

    return cancel_on_page
