"""Which denoising step and which guidance branch a transformer call belongs to, without asking the device.

Sources of the step, in order of trust: the pipeline's cache context (Wan, diffusers >= 0.41), the scheduler's
`step_index`, and calls counted per branch since the run began. Attention calls are never counted: caches skip them.
"""

from __future__ import annotations

import weakref
from dataclasses import InitVar, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tick:
    """One transformer call.

    Args:
        run: Number of the run, rising.
        step: Denoising step, from 0 for the first that this run executes (video-to-video leaves out earlier ones).
        num_inference_steps: Steps that this run executes, `None` if unknown.
        branch: Guidance branch: the cache context's name, or `call<n>` for the n-th call of a step without one.
    """

    run: int
    step: int
    num_inference_steps: int | None
    branch: str


@dataclass
class RunClock:
    """One clock for all transformers of a pipeline.

    Args:
        pipe: What has a `scheduler`, if anything; held weakly. It is read anew at every call, because users exchange
            schedulers.
    """

    pipe: InitVar[Any] = None
    _context: tuple[str, int | None, int | None] | None = None
    _run: int = 0
    _running: bool = False
    _idle: bool = False
    _is_told_wrong: bool = False
    _timesteps: Any = None
    _last: dict[tuple[int, str], int] = field(default_factory=dict)
    _calls: dict[str, int] = field(default_factory=dict)
    _unnamed: tuple[int, int] = (-1, 0)

    def __post_init__(self, pipe: Any) -> None:
        self._pipe = None if pipe is None else weakref.ref(pipe)

    def set_context(self, name: str | None, step: int | None = None, num_inference_steps: int | None = None) -> None:
        """Note the cache context the pipeline has entered; `None` when it leaves."""
        self._context = None if name is None else (name, step, num_inference_steps)

    def end_run(self) -> None:
        """Note that the pipeline call is over; the next transformer call starts a new run."""
        self._running = False
        self._context = None

    def begin_forward(self, transformer: int) -> Tick:
        """Settle step and branch of the call that starts now.

        Args:
            transformer: Number of the transformer within the pipeline.
        """
        pipe = None if self._pipe is None else self._pipe()
        scheduler = getattr(pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if not self._running or timesteps is not self._timesteps:
            # Every run sets the timesteps of its scheduler. If ours is not part of this one, another pipeline runs,
            # which shares the transformer and has a scheduler of its own.
            self._idle = timesteps is not None and (timesteps is self._timesteps or is_spent(scheduler))
            self._start_run(timesteps)
        skipped = self._skipped_steps(pipe, scheduler)
        tick = self._tick(transformer, scheduler, skipped)
        if tick is None:
            # The step went back for this branch: an earlier run died, and this is the next one.
            self._start_run(timesteps)
            tick = self._tick(transformer, scheduler, skipped)
            assert tick is not None, "a fresh run has no earlier step"
        self._last[transformer, tick.branch] = tick.step
        return tick

    def _start_run(self, timesteps: Any) -> None:
        # `set_timesteps` makes a new tensor, so the object itself tells runs apart (a strong reference keeps its id).
        self._timesteps = timesteps
        self._running = True
        self._is_told_wrong = False
        self._run += 1
        self._last.clear()
        self._calls.clear()
        self._unnamed = (-1, 0)

    def _skipped_steps(self, pipe: Any, scheduler: Any) -> int:
        """Leading timesteps of the scheduler that the pipeline leaves out, as video-to-video does.

        What our pipeline says counts only if it is the one that runs: another one may share transformer and scheduler.
        """
        executed = getattr(pipe, "num_timesteps", None)
        if self._idle or self._timesteps is None or not isinstance(executed, int):
            return 0
        skipped, place = max(0, len(self._timesteps) - executed), getattr(scheduler, "step_index", None)
        # With its first step a scheduler is past what is left out. Some pipelines forget that they are at rest.
        self._is_told_wrong |= isinstance(place, int) and 0 < place <= skipped
        at_rest = getattr(pipe, "current_timestep", executed) is None
        return 0 if self._is_told_wrong or at_rest else skipped

    def _tick(self, transformer: int, scheduler: Any, skipped: int) -> Tick | None:
        name, step, total = self._context or (None, None, None)
        if total is None and self._timesteps is not None and not self._idle:
            total = len(self._timesteps) - skipped
        told = step is not None
        if step is None and not self._idle and hasattr(scheduler, "step_index"):
            # The scheduler does not know its place before its first step, but then it is past what is left out.
            step, told = scheduler.step_index or 0, True
            step = step - skipped if step >= skipped else step
        branch = name if name is not None else self._unnamed_branch(step)
        if step is None:
            step = self._calls.get(branch, 0)
            self._calls[branch] = step + 1
        if told and step < self._last.get((transformer, branch), 0):
            return None
        return Tick(self._run, step, total, branch)

    def _unnamed_branch(self, step: int | None) -> str:
        """Name of a call outside any context: its position among the calls of the same step."""
        if step is None:
            return "call0"
        last_step, position = self._unnamed
        position = position + 1 if step == last_step else 0
        self._unnamed = (step, position)
        return f"call{position}"


def is_spent(scheduler: Any) -> bool:
    """Whether a scheduler is not part of any run: it was never set to timesteps, or is past the last of them."""
    place = getattr(scheduler, "step_index", None)
    never_set = getattr(scheduler, "num_inference_steps", None) is None
    return never_set or (isinstance(place, int) and place >= len(scheduler.timesteps))
