"""The search: measure, weigh, allocate, verify."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from fastdit.config import AttentionConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.plan import Phase, Plan, PlanGrid, PlanPoint, TransformerIdentity
from fastdit.search.allocation import IntArray, allocate, pareto_front, total
from fastdit.search.cost import CostModel
from fastdit.search.gains import first_phase_gain, gain_columns, phase_gains, sparse_from
from fastdit.search.identity import describe_pipeline
from fastdit.search.ladder import Mode
from fastdit.search.price import TRIED, VERIFIED
from fastdit.search.promise import first_aim, measured_quality, surplus_of
from fastdit.search.results import Arrays, ResultFolder
from fastdit.search.rounds import CLOSE_WHEN_VERIFIED, rounds_until_kept
from fastdit.search.runs import SearchRuns
from fastdit.search.settings import DEFAULT_PHASES, SearchSettings
from fastdit.search.tables import OrderTables, SearchTables, build_tables, order_tables, steps_in_phases

logger = logging.getLogger(__name__)


def find_plan(
    pipe: Any,
    prompts: Sequence[str],
    *,
    min_psnr: float | None = None,
    min_ssim: float | None = None,
    density: float | None = None,
    speedup: float | None = None,
    call: Mapping[str, Any] | None = None,
    phases: Sequence[float] = DEFAULT_PHASES,
    ladder: Mapping[str, Mode] | Literal["wide"] | None = None,
    gains: Literal["frames", "calls"] = "frames",
    num_measured: int | None = None,
    num_screening: int = 2,
    cost_model: CostModel | None = None,
    refresh_every: int = 1,
    margin: float = 0.3,
    confidence: float = 0.8,
    max_rounds: int = 10,
    seed: int = 0,
    run_directory: str | Path | None = None,
    progress: bool = True,
    on_run: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Plan:
    """The cheapest plan that keeps a promise: least cost with quality >= promise, verified by real runs.

    Measures on the first prompts what every mode costs and errs in every head and phase, and how much that matters to
    the frames; allocates modes to heads; runs the plan on the other prompts and moves the bound on the predicted error
    until the promise is kept.

    Args:
        pipe: A pipeline that is not enabled.
        prompts: Calibration prompts: the first ones are measured on, the others verify. A single prompt is verified
            with another seed.
        min_psnr: Promise: mean PSNR against the dense runs, in dB. Exactly one of this and the next three is given.
        min_ssim: Promise: mean SSIM against the dense runs.
        density: Budget: share of attention scores over the run.
        speedup: Budget: how much faster attention is to be, by the cost model.
        call: Arguments of the pipeline's call, e.g. `{"height": 480, "width": 832, "num_frames": 81}`.
        phases: Ends of the phases, as shares of the run.
        ladder: Modes to choose from, by name; `None` for `fastdit.search.default_ladder()`, "wide" for the same with
            static patterns and sparser rungs.
        gains: How it is measured what errors of heads matter: "frames" takes gradients of the frames of the first
            prompt, which needs memory for the activations of one transformer call and of the decoder; "calls" repeats
            transformer calls and runs the pipeline sparse from each phase on.
        num_measured: Prompts to measure on; `None` for half of them, at most 4.
        num_screening: Prompts that plans are tried on before one is verified on all that verify.
        cost_model: What modes cost; default attention scores alone.
        refresh_every: Steps that plans keep masks for, in all phases but the first.
        margin: dB on top of the promise.
        confidence: Probability with which a plan is to keep the promise on prompts that were not run, from .5 to
            less than 1.
        max_rounds: Plans that are tried at most.
        seed: First seed; prompt number `i` runs with `seed + i`.
        run_directory: Finished pieces are kept here, and a search that was stopped goes on.
        progress: Show progress.
        on_run: Called before each run of the pipeline with what it is for. What it raises stops the search, as does
            what the pipeline raises; with a run directory it can go on later.
        on_plan: Called with each plan that real runs have verified, whether it keeps the promise or not.

    Returns:
        The plan, with what was promised and measured. `plan.keeps_promise` says whether it does: if nothing but dense
        would, the best that was found is returned, with a warning.

    Raises:
        ConfigError: Settings are out of range, or the promise exceeds the noise floor, or `run_directory` holds
            another search.
        InfeasibleError: No plan of this ladder is within the budget.
    """
    settings = SearchSettings(
        prompts=prompts,
        min_psnr=min_psnr,
        min_ssim=min_ssim,
        density=density,
        speedup=speedup,
        call={} if call is None else dict(call),
        phases=tuple(phases),
        ladder=ladder,
        gains=gains,
        num_measured=num_measured,
        num_screening=num_screening,
        cost_model=CostModel() if cost_model is None else cost_model,
        refresh_every=refresh_every,
        margin=margin,
        confidence=confidence,
        max_rounds=max_rounds,
        seed=seed,
    )
    folder = None if run_directory is None else Path(run_directory)
    results = ResultFolder(folder, {**settings.to_dict(), "pipeline": describe_pipeline(pipe)})
    with tqdm(desc="search", unit="run", disable=not progress, total=_expected_runs(settings)) as bar:
        return Search(settings, SearchRuns(pipe, settings, results, bar, on_run), on_plan).run()


class Search:
    """One search.

    Args:
        settings: What is asked for.
        runs: The pipeline's runs.
        on_plan: Called with each verified plan.
    """

    def __init__(
        self, settings: SearchSettings, runs: SearchRuns, on_plan: Callable[[Plan], None] | None = None
    ) -> None:
        self.settings, self.runs, self.on_plan = settings, runs, on_plan
        self._measured: list[Arrays] = []
        self._transformers: list[TransformerIdentity] = []
        # PSNR above which real errors fall slower than predicted ones: that of the run that gains were measured with.
        self._all_sparse = math.inf

    def run(self) -> Plan:
        """Measure, then allocate and verify until done."""
        settings = self.settings
        floor = self._noise_floor()
        tables = self.measure()
        if settings.density is not None or settings.speedup is not None:
            plan = self._within_budget(tables)
        else:
            plan = self._keeping_promise(tables)
        return plan.model_copy(update={"measured": {**plan.measured, **floor}})

    def measure(self) -> SearchTables:
        """Measure modes and gains, and put them together."""
        self._measured = [self.runs.measure(number) for number in range(len(self.settings.measured_runs))]
        names = self._measured[0]["identities"].tolist()
        self._transformers = [TransformerIdentity.model_validate_json(name) for name in names]
        return self._tables(self.settings.cost_model)

    def _noise_floor(self) -> dict[str, float]:
        """How far dense attention through another kernel is from dense attention.

        Raises:
            ConfigError: The promise is above it.
        """
        settings, found = self.settings, self.runs.noise_floor()
        # Rounding may carry the SSIM of frames that are hardly apart over 1.
        psnr, ssim = float(found["psnr"][0]), min(float(found["ssim"][0]), 1.0)
        too_much = settings.min_psnr is not None and settings.min_psnr + settings.margin > psnr
        if too_much or (settings.min_ssim is not None and settings.min_ssim >= ssim):
            raise ConfigError(
                f"the promise {settings.promise} with margin {settings.margin} is above the noise floor of {psnr:.1f} "
                f"dB, SSIM {ssim:.4f}, which dense attention through another kernel already makes: accepted is less"
            )
        return {"noise_floor_psnr": psnr, **({} if math.isnan(ssim) else {"noise_floor_ssim": ssim})}

    def _tables(self, cost_model: CostModel) -> SearchTables:
        modes, gains = list(self.settings.modes.values()), self._phase_gains()
        steps = self.runs.executed
        return build_tables(
            self._measured,
            gains,
            self._transformers,
            modes,
            self.settings.phases,
            steps,
            cost_model,
            self.settings.refresh_every,
        )

    def _phase_gains(self) -> list[float]:
        """See `gains.phase_gains`; the runs are made from the last phase on, each of them once."""
        settings, first, names = self.settings, self._measured[0], list(self.settings.modes)
        steps = steps_in_phases(settings.phases, self.runs.executed)
        rungs = [names.index(name) for name in self.runs.gain_rungs]
        in_calls = {name: array for name, array in first.items() if not name.startswith("frame_gain")}
        columns = gain_columns(in_calls, self._transformers, steps, rungs, names.index(self.runs.gain_mode))
        modes = [names[column] for column in columns]
        orders: list[OrderTables] = []
        for phase, column in enumerate(columns):
            numbers = [first[f"orders_{number}"][..., column] for number in range(len(self._transformers))]
            orders.append(order_tables(settings.modes[modes[phase]], numbers)[phase])
        mse: list[float | None] = [None] * len(steps)
        with_steps = [phase for phase in range(len(steps)) if any(steps[phase])]
        for phase in with_steps[:1] if settings.gains == "frames" else reversed(with_steps):
            plan = self._plan(sparse_from(phase, settings.phases, modes, self._transformers, orders), 0.0, 0.0)
            mse[phase] = self.runs.error_from_phase(phase, plan)
        worst = max(error for error in mse if error is not None)
        if settings.gains == "frames":
            return first_phase_gain(worst, [first], self._transformers, steps, columns)
        self._all_sparse = -10 * math.log10(max(worst, 1e-12))
        return phase_gains(mse, [first], self._transformers, steps, columns)

    def _keeping_promise(self, tables: SearchTables) -> Plan:
        """Move the bound on the predicted error until the promise is kept closely."""
        settings = self.settings
        first = 10 ** (-first_aim(settings, CLOSE_WHEN_VERIFIED, self._all_sparse) / 10)

        def screen(choice: IntArray) -> tuple[Plan, float]:
            return self._tried(tables, choice, settings.screening_runs, tail=False)

        def verify(choice: IntArray) -> tuple[Plan, float]:
            return self._tried(tables, choice, settings.verified_runs, tail=True)

        rounds = rounds_until_kept(tables, screen, verify, first, settings.max_rounds)
        kept = [done.plan for done in rounds if done.surplus >= 0]
        if kept:
            return min(kept, key=lambda plan: plan.predicted_cost)
        best = max(rounds, key=lambda done: done.surplus)
        logger.warning("no plan kept the promise %s; the best found is %s", settings.promise, best.plan.measured)
        return best.plan

    def _within_budget(self, tables: SearchTables) -> Plan:
        settings = self.settings
        if settings.density is not None:
            scores = self._tables(CostModel())
            choice = allocate(scores.error, scores.cost, max_cost=settings.density)
        else:
            assert settings.speedup is not None, "one of them is given"
            choice = allocate(tables.error, tables.cost, max_cost=1 / settings.speedup)
        return self._tried(tables, choice, settings.verified_runs, tail=False)[0]

    def _tried(
        self, tables: SearchTables, choice: IntArray, runs: list[tuple[str, int]], *, tail: bool
    ) -> tuple[Plan, float]:
        """The plan of a choice with what real runs measure of it, and its surplus over the promise in dB."""
        plan = self.plan_of(tables, choice)
        found = self.runs.compare(f"verify_{plan.digest()[:16]}", plan, runs)
        plan = plan.model_copy(update={"measured": measured_quality(found)})
        if self.on_plan is not None:
            self.on_plan(plan)
        return plan, surplus_of(self.settings, found, tail=tail)

    def plan_of(self, tables: SearchTables, choice: IntArray) -> Plan:
        """The plan of a choice, before anything is verified.

        Args:
            tables: By `measure`.
            choice: Mode of each item.
        """
        phases = tables.phase_tables(choice, self.settings.modes, self.settings.phases)
        front = tuple(
            PlanPoint(cost=point.cost, error=point.error) for point in pareto_front(tables.error, tables.cost, 100)
        )
        plan = self._plan(phases, total(tables.error, choice), total(tables.cost, choice))
        return plan.model_copy(update={"front": front})

    def _plan(self, phases: tuple[Phase, ...], error: float, cost: float) -> Plan:
        settings, grid = self.settings, self._measured[0]["grid"].tolist()
        used = {name for phase in phases for table in phase.modes for row in table for name in row}
        modes = {
            name: mode.to_dict() if isinstance(mode, AttentionConfig) else mode
            for name, mode in settings.modes.items()
            if name in used
        }
        environment = {name: str(value) for name, value in describe_environment().items()}
        return Plan(
            transformers=tuple(self._transformers),
            grid=PlanGrid(**dict(zip(("frames", "height", "width", "text_length"), grid, strict=True))),
            num_inference_steps=self.runs.num_inference_steps,
            modes=modes,
            phases=phases,
            promise=settings.promise,
            predicted_error=error,
            predicted_cost=cost,
            environment={**environment, "cost_model": settings.cost_model.source},
        )


def _expected_runs(settings: SearchSettings) -> int:
    """Runs of a search, `price.TRIED` plans tried and `price.VERIFIED` of them verified for a promise."""
    verified, screened = len(settings.verified_runs), len(settings.screening_runs)
    budget = settings.density is not None or settings.speedup is not None
    tried = verified if budget else TRIED * screened + VERIFIED * (verified - screened)
    weighed = 1 if settings.gains == "frames" else len(settings.phases)
    return len(settings.measured_runs) + weighed + 1 + verified + tried
