"""Runs searches through the server's job queue: one at a time, stoppable at any transformer call, resumable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import fastdit
from fastdit import Plan
from fastdit.api import find_transformers
from fastdit.errors import FastDitError, InvalidInputError
from fastdit.search.ladder import Mode
from fastdit.search.progress import SearchProgress
from fastdit_ui.jobs import Job, JobCancelled, JobView
from fastdit_ui.search_store import SearchRequest, SearchStore
from fastdit_ui.state import AppState

Status = Literal["waiting", "running", "paused", "done", "failed", "stopped"]


class _MakeWayError(Exception):
    """Raised between two runs of a search when other jobs wait."""


class SearchWorker:
    """The search of a server, if one is under way.

    Between two of its runs it lets other jobs of the queue pass, and then goes on from its folder.

    Args:
        state: The server.
        store: Its searches.
        ladder: Modes to choose from; `None` for those of `fastdit.search`.
    """

    def __init__(self, state: AppState, store: SearchStore, ladder: Mapping[str, Mode] | None = None) -> None:
        self._state, self.store, self._ladder = state, store, ladder
        self._lock = threading.Lock()
        self._current: tuple[str, Job] | None = None

    def start(self, request: SearchRequest) -> str:
        """Begin a search; its name.

        Raises:
            InvalidInputError: One is under way, or the model is not offered.
            OutputError: Its folder cannot be written.
        """
        self._state.settings.check_model(request.model)
        with self._lock:
            self._check_idle()
            name = self.store.create(request)
            self._submit(name)
        return name

    def resume(self, name: str) -> None:
        """Go on with a search that was stopped.

        Raises:
            InvalidInputError: There is none of this name, it is done, or another one is under way.
        """
        with self._lock:
            self._check_idle()
            request = self.store.request(name)
            self._state.settings.check_model(request.model)
            if self.store.view(name).outcome == "done":
                raise InvalidInputError(f"search {name} is done: start a new one")
            self.store.note_error(name, None)
            self._submit(name)

    def stop(self, name: str) -> None:
        """Stop a search at its next transformer call; its finished runs are kept.

        Raises:
            InvalidInputError: It is not under way.
        """
        with self._lock:
            if self._current is None or self._current[0] != name or self._current[1].finished:
                raise InvalidInputError(f"search {str(name)[:80]!r} is not under way")
            self._state.jobs.cancel(self._current[1])

    def job(self, name: str) -> Job | None:
        """The job of a search that is under way."""
        current = self._current
        return current[1] if current is not None and current[0] == name and not current[1].finished else None

    def status(self, name: str) -> Status:
        """Where a search stands."""
        job = self.job(name)
        if job is not None:
            return "running" if job.status == "running" else "waiting"
        outcome = self.store.view(name).outcome
        return "stopped" if outcome == "unfinished" else outcome

    def view(self, name: str) -> JobView | None:
        """What a page shows of the job of a search that is under way."""
        job = self.job(name)
        return None if job is None else self._state.jobs.view(job)

    def plan(self, name: str, digest: str | None = None) -> Plan:
        """A plan of a search: its result, or that of a round.

        Raises:
            InvalidInputError: There is no such search or plan.
        """
        view = self.store.view(name)
        plan = view.plan if digest is None else view.plans.get(digest)
        if plan is None:
            what = "result yet" if digest is None else f"plan {digest[:40]!r}"
            raise InvalidInputError(
                f"search {name} has no {what}: accepted are its rounds, {', '.join(view.plans) or 'none so far'}"
            )
        return plan

    @property
    def active(self) -> str | None:
        """Name of the search that is under way."""
        current = self._current
        return current[0] if current is not None and not current[1].finished else None

    def _check_idle(self) -> None:
        if self.active is not None:
            raise InvalidInputError(f"search {self.active} is under way: stop it first, it can go on later")

    def _submit(self, name: str) -> None:
        # An owner of its own: a search outlives the page that began it.
        self._current = (name, self._state.jobs.submit("search", f"search {name}", lambda job: self._work(name, job)))

    def _work(self, name: str, job: Job) -> None:
        request, store = self.store.request(name), self.store
        aim: dict[str, Any] = {request.aim: request.value}
        job.report(0, 0, "Loading the model")
        try:
            pipe = self._state.pipelines.get(request.model)
            with interruptible(pipe, job.check):
                plan = fastdit.search(
                    pipe,
                    request.prompts,
                    **aim,
                    call=request.call,
                    ladder=self._ladder,
                    num_measured=request.num_measured,
                    max_rounds=request.max_rounds,
                    seed=request.seed,
                    run_directory=store.folder(name) / "run",
                    progress=False,
                    on_run=self._between_runs(name, job, request),
                    on_plan=lambda plan: store.keep_round(name, plan),
                )
            store.finish(name, plan)
        except _MakeWayError:
            with self._lock:
                job.check()
                self._submit(name)
        except JobCancelled:
            raise
        except FastDitError as error:
            store.note_error(name, str(error))
            raise
        except Exception:
            store.note_error(name, "an internal error, noted in the server's log")
            raise

    def _between_runs(self, name: str, job: Job, request: SearchRequest) -> Callable[[str], None]:
        before = finished_runs(self.store.view(name).progress)
        total, made = expected_runs(request), 0

        def report(label: str) -> None:
            nonlocal made
            if made and self._state.jobs.counts()[1]:
                raise _MakeWayError
            job.report(before + made, max(total, before + made + 1), f"search: {label}")
            made += 1

        return report


@contextmanager
def interruptible(pipe: Any, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each call of a pipeline's transformers; what it raises ends the run."""
    handles = [module.register_forward_pre_hook(lambda *_: check()) for _, module in find_transformers(pipe)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def finished_runs(progress: SearchProgress) -> int:
    """Runs that need not be made again."""
    floor = progress.noise_floor_psnr is not None
    return progress.measured[0] + progress.phases[0] + floor + sum(one.runs for one in progress.rounds)


def expected_runs(request: SearchRequest) -> int:
    """Runs that a search makes at most, about: those that measure, weigh the first phase, and verify."""
    measured = min(request.num_measured, len(request.prompts))
    verified = len(request.prompts) - measured or 1
    rounds = request.max_rounds if request.aim.startswith("min_") else 1
    return measured + 1 + 1 + verified * (1 + rounds)
