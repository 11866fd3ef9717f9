"""One queue and one worker: whatever computes runs here, one job at a time, in the order of arrival.

A job belongs to its owner (the session of a page or of an API client), who alone may cancel it. The queue forgets a job
as soon as it has ended; its result lives as long as the one who waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdit.errors import FastDitError

Status = Literal["waiting", "running", "done", "failed", "cancelled"]
# How often a page looks for news of its job, in seconds.
POLL_SECONDS = 0.1
log = logging.getLogger("fastdit.ui")


class JobCancelled(Exception):
    """Raised inside a job that its owner has cancelled."""


class QueueFullError(FastDitError, RuntimeError):
    """Too many jobs wait already."""


@dataclass(frozen=True)
class JobView:
    """What a page shows of a job.

    Args:
        status: Where it stands.
        ahead: Jobs before it.
        label: What is being done.
        step: Steps done of the present part.
        total: Steps of the present part; 0 if unknown.
        seconds: Time since the job began.
        eta: Seconds to the end of the present part, by the pace of its steps so far; `None` if unknown.
    """

    status: Status
    ahead: int
    label: str
    step: int
    total: int
    seconds: float
    eta: float | None


@dataclass(eq=False)
class Job:
    """A piece of work.

    Args:
        kind: What it is, e.g. "generate".
        owner: Who asked for it.
        work: Called with the job in the worker's thread; what it returns is the result.
    """

    kind: str
    owner: str
    work: Callable[[Job], Any] | None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    status: Status = "waiting"
    label: str = "waiting"
    step: int = 0
    total: int = 0
    result: Any = None
    error: str | None = None
    began: float | None = None
    ended: float | None = None
    _part_began: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.status in ("done", "failed", "cancelled")

    def report(self, step: int, total: int, label: str | None = None) -> None:
        """Say how far the work is; to be called by the work itself, and the place where it is stopped.

        Args:
            step: Steps done of the present part.
            total: Steps of the present part, 0 if unknown.
            label: What is being done; a new label begins a new part.

        Raises:
            JobCancelled: The owner has cancelled the job. Let it pass.
        """
        if label is not None and label != self.label:
            self.label, self._part_began = label, time.monotonic()
        elif step == 0:
            self._part_began = time.monotonic()
        self.step, self.total = step, total
        self.check()

    def check(self) -> None:
        """Stop here if the job is cancelled.

        Raises:
            JobCancelled: It is.
        """
        if self._stop.is_set():
            raise JobCancelled

    def view(self, ahead: int = 0) -> JobView:
        """What a page shows."""
        now = self.ended or time.monotonic()
        eta = None
        if self.status == "running" and 0 < self.step <= self.total:
            eta = (now - self._part_began) / self.step * (self.total - self.step)
        seconds = 0.0 if self.began is None else now - self.began
        return JobView(self.status, ahead, self.label, self.step, self.total, seconds, eta)


class JobQueue:
    """First come, first served, by one thread.

    Args:
        max_waiting: Jobs that may wait.
    """

    def __init__(self, max_waiting: int = 100) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._condition = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, kind: str, owner: str, work: Callable[[Job], Any]) -> Job:
        """Queue a piece of work.

        Raises:
            QueueFullError: Too many jobs wait already.
        """
        job = Job(kind, owner, work)
        with self._condition:
            if self._closed:
                raise QueueFullError("the server is stopping: no new work is taken")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} jobs are waiting already: try again later")
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="fastdit-worker", daemon=True)
                self._thread.start()
            self._condition.notify()
        return job

    def view(self, job: Job) -> JobView:
        """What a page shows of a job, with its place in the queue."""
        with self._condition:
            ahead = 0
            if job in self._waiting:
                ahead = self._waiting.index(job) + (self._running is not None)
        return job.view(ahead)

    def cancel(self, job: Job) -> None:
        """Drop a waiting job, or have a running one stop at its next report."""
        with self._condition:
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled")
            elif not job.finished:
                job._stop.set()

    def cancel_owner(self, owner: str, kind: str | None = None, *, waiting_only: bool = False) -> int:
        """Cancel the jobs of an owner.

        Args:
            owner: Whose.
            kind: Only of this kind.
            waiting_only: Whether to let a running one go on.

        Returns:
            How many there were.
        """
        with self._condition:
            mine = [job for job in self._waiting if job.owner == owner]
            if self._running is not None and self._running.owner == owner and not waiting_only:
                mine.append(self._running)
        chosen = [job for job in mine if kind is None or job.kind == kind]
        for job in chosen:
            self.cancel(job)
        return len(chosen)

    def counts(self) -> tuple[int, int]:
        """Jobs running and waiting."""
        with self._condition:
            return int(self._running is not None), len(self._waiting)

    def close(self, timeout: float = 5.0) -> None:
        """Cancel everything and end the worker."""
        with self._condition:
            self._closed = True
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                self.cancel(job)
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _serve(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
                job.status, job.began = "running", time.monotonic()
                job._part_began = job.began
            self._run(job)
            with self._condition:
                self._running = None
            # Otherwise the last result would live on in this thread while it waits.
            del job

    def _run(self, job: Job) -> None:
        try:
            job.check()
            assert job.work is not None, "a job runs once"
            job.result = job.work(job)
            self._end(job, "done")
        except JobCancelled:
            self._end(job, "cancelled")
        except FastDitError as error:
            job.error = str(error)
            self._end(job, "failed")
        except Exception:
            # Whatever a pipeline raises must not end the worker; the page gets no traceback.
            log.exception("job %s (%s) failed", job.id, job.kind)
            job.error = f"an internal error, noted in the server's log under job {job.id}"
            self._end(job, "failed")

    def _end(self, job: Job, status: Status) -> None:
        # The work holds what it was made with, e.g. images.
        job.work, job.ended, job.status = None, time.monotonic(), status


async def follow(queue: JobQueue, job: Job) -> AsyncIterator[JobView]:
    """News of a job until it has ended, the last view included.

    Whoever stops listening to a waiting job gives it up; one that runs goes on, and its result is in the library.
    """
    last: tuple[Any, ...] = ()
    try:
        while True:
            finished = job.finished
            view = queue.view(job)
            # Whole seconds: the bar should move, but not ten times a second.
            news = (view.status, view.ahead, view.label, view.step, view.total, int(view.seconds))
            if news != last or finished:
                last = news
                yield view
            if finished:
                return
            await asyncio.sleep(POLL_SECONDS)
    finally:
        if job.status == "waiting":
            queue.cancel(job)
