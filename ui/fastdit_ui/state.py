"""What all pages of one server share."""

from __future__ import annotations

from typing import Any

from fastdit_ui.baselines import BaselineCache
from fastdit_ui.engine import Engine, PipelineHolder
from fastdit_ui.jobs import JobQueue
from fastdit_ui.plans import PlanStore
from fastdit_ui.runs import RunStore
from fastdit_ui.settings import ServerSettings


class AppState:
    """One server: settings, engine, queue, runs and plans. Nothing here belongs to one user.

    Args:
        settings: What the server was started with.
        engine: Where pipelines come from.

    Attributes:
        jobs: All work that computes goes through here: `jobs.submit(kind, owner, work)`, then `follow(jobs, job)`.
            The owner is `request.session_hash`.
        pipelines: `pipelines.get(model)` inside a job gives the pipeline, not enabled.
        runs: Finished runs in the output folder.
        plans: Plans in `plans/` of the output folder; those that ship with the models are put there.
        baselines: Dense runs kept for comparisons; for jobs alone.
        page: Components that tabs share, by name, filled while the page is built: "tabs" (`gr.Tabs`, ids are those of
            `app.TABS`), "plan_choice" (dropdown of plan names on the Generate tab), "plan_source" (its
            choice of dial, expert or plan), "generate_form", and "library_changed" (a `gr.State` that every run of this
            page sets to its name, so that the library can listen for its change).
    """

    def __init__(self, settings: ServerSettings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.jobs = JobQueue(settings.max_waiting)
        self.pipelines = PipelineHolder(engine)
        self.runs = RunStore(settings.output_dir)
        self.plans = PlanStore(self.runs.root / "plans")
        for model in settings.models:
            self.plans.add_missing(engine.plans(model))
        self.baselines = BaselineCache(settings.baseline_mb << 20)
        self.page: dict[str, Any] = {}

    def close(self) -> None:
        """End the worker."""
        self.jobs.close()
