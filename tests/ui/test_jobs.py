"""The queue: order, owners, cancelling, failures."""

import asyncio
import gc
import threading
import weakref

import pytest

from fastdit.errors import ConfigError
from fastdit_ui.jobs import JobCancelled, JobQueue, QueueFullError, follow


@pytest.fixture
def queue():
    made = JobQueue(max_waiting=5)
    yield made
    made.close()


@pytest.fixture
def gate(queue):
    """A job that runs until it is let go, so that others wait."""
    opened, begun = threading.Event(), threading.Event()

    def work(job):
        begun.set()
        while not opened.wait(0.01):
            job.report(1, 4, "holding")

    blocker = queue.submit("block", "somebody", work)
    assert begun.wait(5)
    yield blocker, opened
    opened.set()


def wait_for(queue, *jobs):
    async def run():
        for job in jobs:
            async for _ in follow(queue, job):
                pass

    asyncio.run(asyncio.wait_for(run(), 10))


def test_jobs_run_in_the_order_of_arrival_and_keep_their_results(queue, gate):
    seen = []
    jobs = [queue.submit("count", "me", lambda job, n=n: (seen.append(n), n * n)[1]) for n in range(4)]
    assert [queue.view(job).ahead for job in jobs] == [1, 2, 3, 4]
    gate[1].set()
    wait_for(queue, *jobs)
    assert seen == [0, 1, 2, 3]
    assert [job.result for job in jobs] == [0, 1, 4, 9]
    assert queue.counts() == (0, 0)


def test_a_waiting_job_that_is_cancelled_never_runs(queue, gate):
    ran = []
    dropped = queue.submit("a", "me", lambda job: ran.append("dropped"))
    kept = queue.submit("a", "me", lambda job: ran.append("kept"))
    queue.cancel(dropped)
    gate[1].set()
    wait_for(queue, dropped, kept)
    assert (dropped.status, kept.status, ran) == ("cancelled", "done", ["kept"])


def test_a_running_job_stops_at_its_next_report(queue, gate):
    blocker, _ = gate
    queue.cancel(blocker)
    wait_for(queue, blocker)
    assert blocker.status == "cancelled"
    assert blocker.result is None


def test_owners_cancel_their_own_jobs_alone(queue, gate):
    mine, theirs = (queue.submit("a", owner, lambda job: 1) for owner in ("me", "them"))
    assert queue.cancel_owner("me") == 1
    assert queue.cancel_owner("nobody") == 0
    assert queue.cancel_owner("somebody", waiting_only=True) == 0
    gate[1].set()
    wait_for(queue, mine, theirs)
    assert (mine.status, theirs.status) == ("cancelled", "done")


def test_only_jobs_of_the_kind_are_cancelled(queue, gate):
    one, other = (queue.submit(kind, "me", lambda job: 1) for kind in ("generate", "search"))
    assert queue.cancel_owner("me", "search") == 1
    gate[1].set()
    wait_for(queue, one, other)
    assert (one.status, other.status) == ("done", "cancelled")


def test_a_full_queue_refuses_and_says_so(queue, gate):
    for _ in range(5):
        queue.submit("a", "me", lambda job: 1)
    with pytest.raises(QueueFullError, match="5 jobs are waiting"):
        queue.submit("a", "me", lambda job: 1)


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ConfigError("width=3: accepted is 16"), "width=3: accepted is 16"), (RuntimeError("/secret/path"), "internal")],
)
def test_failures_of_fastdit_are_told_and_others_are_not(queue, error, shown):
    def work(job):
        raise error

    job = queue.submit("a", "me", work)
    after = queue.submit("a", "me", lambda job: "still alive")
    wait_for(queue, job, after)
    assert job.status == "failed"
    assert shown in job.error
    assert "secret" not in job.error
    assert after.result == "still alive"


def test_time_to_go_is_the_pace_of_the_present_part(queue):
    views = []

    def work(job):
        for step in range(1, 5):
            threading.Event().wait(0.05)
            job.report(step, 4, "steps")
            views.append(queue.view(job))

    wait_for(queue, queue.submit("a", "me", work))
    assert [view.step for view in views] == [1, 2, 3, 4]
    assert views[-1].eta == 0
    # Two steps done, two to go, at 0.05 s and what the machine adds.
    assert 0.05 < views[1].eta < 2


def test_the_queue_forgets_what_has_ended(queue):
    class Result:
        pass

    job = queue.submit("a", "me", lambda job: Result())
    wait_for(queue, job)
    result, remembered = weakref.ref(job.result), weakref.ref(job)
    # The worker lets go of its job when it waits for the next one.
    wait_for(queue, queue.submit("a", "me", lambda job: None))
    del job
    gc.collect()
    assert result() is None
    assert remembered() is None


def test_who_stops_listening_to_a_waiting_job_gives_it_up(queue, gate):
    job = queue.submit("a", "me", lambda job: 1)

    async def leave():
        news = follow(queue, job)
        assert (await anext(news)).status == "waiting"
        await news.aclose()

    asyncio.run(leave())
    assert job.status == "cancelled"


def test_closing_cancels_everything(queue, gate):
    waiting = queue.submit("a", "me", lambda job: 1)
    queue.close()
    assert (gate[0].status, waiting.status) == ("cancelled", "cancelled")
    with pytest.raises(QueueFullError):
        queue.submit("a", "me", lambda job: 1)


def test_cancellation_passes_through_the_handlers_of_errors():
    assert not issubclass(JobCancelled, RuntimeError | ValueError)
