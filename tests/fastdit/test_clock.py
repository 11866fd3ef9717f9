"""Steps and branches from every source, without a model."""

import pytest

from fastdit.clock import RunClock


class Scheduler:
    """The attributes the clock reads."""

    def __init__(self, steps, with_index=True):
        self.with_index = with_index
        self.set_timesteps(steps)

    def set_timesteps(self, steps):
        self.timesteps = list(range(steps))
        self.num_inference_steps = steps
        if self.with_index:
            self.step_index = None

    def step(self):
        if self.with_index:
            self.step_index = (self.step_index or 0) + 1


def named_run(clock, steps, *, told=False, branches=("cond", "uncond"), scheduler=None, transformer=lambda step: 0):
    ticks = []
    for step in range(steps):
        for branch in branches:
            clock.set_context(branch, step if told else None, steps if told else None)
            ticks.append(clock.begin_forward(transformer(step)))
            clock.set_context(None)
        if scheduler is not None:
            scheduler.step()
    return ticks


class Pipe:
    def __init__(self, scheduler=None):
        self.scheduler = scheduler


EXPECTED = [(0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond"), (2, "cond"), (2, "uncond")]


def places(ticks):
    return [(tick.step, tick.branch) for tick in ticks]


def test_step_from_the_context():
    ticks = named_run(RunClock(), 3, told=True)
    assert places(ticks) == EXPECTED
    assert {tick.num_inference_steps for tick in ticks} == {3}


def test_step_from_the_scheduler():
    scheduler = Scheduler(3)
    pipe = Pipe(scheduler)
    ticks = named_run(RunClock(pipe), 3, scheduler=scheduler)
    assert places(ticks) == EXPECTED
    assert {tick.num_inference_steps for tick in ticks} == {3}


def test_steps_that_the_pipeline_leaves_out_are_not_counted():
    """Video-to-video begins in the middle; the scheduler learns its place in its first step."""
    for with_index in (True, False):
        scheduler = Scheduler(5, with_index=with_index)
        pipe = Pipe(scheduler)
        pipe.num_timesteps = 3
        clock, ticks = RunClock(pipe), []
        for step in range(3):
            for branch in ("cond", "uncond"):
                clock.set_context(branch)
                ticks.append(clock.begin_forward(0))
            if with_index:
                scheduler.step_index = 2 + step + 1
        assert places(ticks) == EXPECTED
        assert {tick.num_inference_steps for tick in ticks} == {3}
        assert len({tick.run for tick in ticks}) == 1


@pytest.mark.parametrize(("with_index", "says_so"), [(True, True), (True, False), (False, True)])
def test_what_a_pipeline_at_rest_left_out_does_not_count(with_index, says_so):
    """Another pipeline shares transformer and scheduler; some pipelines keep their last timestep."""
    scheduler = Scheduler(2, with_index=with_index)
    pipe = Pipe(scheduler)
    pipe.num_timesteps, pipe.current_timestep = 2, 0
    clock = RunClock(pipe)
    named_run(clock, 2, scheduler=scheduler)
    clock.end_run()
    if says_so:
        pipe.current_timestep = None
    scheduler.set_timesteps(5)
    ticks = named_run(clock, 5, branches=("cond_uncond",), scheduler=scheduler)
    assert [tick.step for tick in ticks] == [0, 1, 2, 3, 4]
    assert {tick.num_inference_steps for tick in ticks[0 if says_so else 1 :]} == {5}
    assert len({tick.run for tick in ticks}) == 1


def test_step_by_counting_calls_per_branch():
    scheduler = Scheduler(3, with_index=False)
    pipe = Pipe(scheduler)
    assert places(named_run(RunClock(pipe), 3, scheduler=scheduler)) == EXPECTED


def test_batched_guidance_is_one_branch():
    scheduler = Scheduler(2)
    pipe = Pipe(scheduler)
    ticks = named_run(RunClock(pipe), 2, branches=("cond_uncond",), scheduler=scheduler)
    assert places(ticks) == [(0, "cond_uncond"), (1, "cond_uncond")]


def test_calls_without_a_context_are_told_apart_by_position():
    scheduler = Scheduler(2)
    pipe = Pipe(scheduler)
    clock = RunClock(pipe)
    ticks = []
    for _ in range(2):
        ticks += [clock.begin_forward(0), clock.begin_forward(0)]
        scheduler.step()
    assert places(ticks) == [(0, "call0"), (0, "call1"), (1, "call0"), (1, "call1")]


def test_two_transformers_share_the_clock():
    for told in (True, False):
        scheduler = Scheduler(4)
        pipe = Pipe(scheduler)
        ticks = named_run(RunClock(pipe), 4, told=told, scheduler=scheduler, transformer=lambda step: int(step >= 2))
        assert [tick.step for tick in ticks] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len({tick.run for tick in ticks}) == 1


def test_a_new_run_after_the_end_of_the_last():
    scheduler = Scheduler(3, with_index=False)
    pipe = Pipe(scheduler)
    clock = RunClock(pipe)
    first = named_run(clock, 3, scheduler=scheduler)
    clock.end_run()
    second = named_run(clock, 3, scheduler=scheduler)
    assert places(second) == EXPECTED
    assert second[0].run == first[0].run + 1


def test_a_run_that_died_does_not_shift_the_next():
    for with_index in (True, False):
        scheduler = Scheduler(3, with_index=with_index)
        pipe = Pipe(scheduler)
        clock = RunClock(pipe)
        named_run(clock, 2, scheduler=scheduler)  # no end_run: an exception
        clock.set_context("cond")  # diffusers 0.40 leaves the context set
        scheduler.set_timesteps(3)
        assert places(named_run(clock, 3, scheduler=scheduler)) == EXPECTED


def test_a_died_run_is_noticed_without_a_scheduler_when_the_step_goes_back():
    clock = RunClock()
    first = named_run(clock, 2, told=True)
    second = named_run(clock, 3, told=True)
    assert places(second) == EXPECTED
    assert second[0].run == first[-1].run + 1


def test_the_pipeline_is_not_kept_alive():
    pipe = Pipe(Scheduler(2))
    clock = RunClock(pipe)
    del pipe
    clock.set_context("cond", 0, 5)
    assert clock.begin_forward(0).num_inference_steps == 5


def test_a_scheduler_exchanged_later_is_the_one_that_counts():
    pipe = Pipe(Scheduler(9))
    clock = RunClock(pipe)
    pipe.scheduler = Scheduler(3)
    ticks = named_run(clock, 3, scheduler=pipe.scheduler)
    assert places(ticks) == EXPECTED
    assert {tick.num_inference_steps for tick in ticks} == {3}


def test_a_scheduler_without_timesteps_is_no_obstacle():
    pipe = Pipe(object())
    assert RunClock(pipe).begin_forward(0).step == 0


def test_a_run_that_leaves_our_scheduler_alone_is_counted():
    """Another pipeline shares the transformer, with a scheduler of its own."""
    scheduler = Scheduler(3)
    pipe = Pipe(scheduler)
    clock = RunClock(pipe)
    for ours in (True, False, False, True):
        if ours:
            scheduler.set_timesteps(3)
        ticks = named_run(clock, 3, scheduler=scheduler if ours else None)
        clock.end_run()
        assert places(ticks) == EXPECTED
        assert {tick.num_inference_steps for tick in ticks} == {3 if ours else None}


@pytest.mark.parametrize("before", ["never set", "finished"])
def test_a_first_run_that_leaves_our_scheduler_alone_is_counted(before):
    """The same, before any run of our own since the clock was made."""
    scheduler = Scheduler(3)
    if before == "never set":
        scheduler.num_inference_steps = None
    else:
        scheduler.step_index = 3
    pipe = Pipe(scheduler)
    clock = RunClock(pipe)
    assert places(named_run(clock, 3)) == EXPECTED
    clock.end_run()
    scheduler.set_timesteps(3)
    ticks = named_run(clock, 3, scheduler=scheduler)
    assert places(ticks) == EXPECTED
    assert {tick.num_inference_steps for tick in ticks} == {3}
