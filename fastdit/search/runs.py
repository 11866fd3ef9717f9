"""The pipeline runs of a search: dense references, measurements, and sparse runs to hold against the references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastdit.api import enable, find_transformers
from fastdit.config import AdaptiveConfig, AttentionConfig, CachedConfig, PyramidConfig, StaticConfig
from fastdit.errors import InvalidInputError
from fastdit.fidelity import measure_fidelity
from fastdit.plan import ALL_SPARSE, Plan
from fastdit.search.followed_run import check_followed, followed_frames
from fastdit.search.frame_gains import FrameGains, followed_steps, frame_gain_table
from fastdit.search.measure import MeasuringDoneError, ModeProbe
from fastdit.search.measured_arrays import measured_arrays, orders_of
from fastdit.search.replay import calls_before, replayed
from fastdit.search.results import Arrays, ResultFolder
from fastdit.search.settings import SearchSettings
from fastdit.search.tables import BoolArray, known_steps, measured_steps, steps_in_phases, steps_of_phases

# Further prompts than these are measured in the first part of the run, at a fraction of the price of a whole run: plans
# of the bundled model were no better for having them measured in the first half.
MEASURED_WHOLLY = 1
FIRST_PART = 0.25
FIGURES = ("psnr", "ssim", "mse", "density")


class SearchRuns:
    """Every run of a pipeline that a search makes, each made once.

    Args:
        pipe: A pipeline that is not enabled.
        settings: The search.
        results: Where finished runs are kept.
        bar: Counts runs.
        on_run: Called before each run with what it is for.
    """

    def __init__(
        self,
        pipe: Any,
        settings: SearchSettings,
        results: ResultFolder,
        bar: tqdm[Any],
        on_run: Callable[[str], None] | None = None,
    ) -> None:
        self.pipe, self.settings, self.results, self.bar, self.on_run = pipe, settings, results, bar, on_run
        if settings.gains == "frames":
            check_followed(pipe)

    @property
    def executed(self) -> BoolArray:
        """Whether a transformer runs in a step, bool `[transformers, steps]`: counted in the first dense run."""

        def compute() -> Arrays:
            prompt, seed = self.settings.verified_runs[0]
            found: dict[str, BoolArray] = {}

            def run() -> Arrays:
                with ModeProbe(self.pipe, (), {}) as probe:
                    frames = self._call(prompt, seed, "dense")
                assert frames is not None, "only measured runs end early"
                found["executed"] = probe.executed()
                return {"frames": frames}

            if self.results.has(f"dense_{seed}"):
                run()
            else:
                self.results.get(f"dense_{seed}", run)
            return {"executed": found["executed"]}

        executed: BoolArray = self.results.get("steps", compute)["executed"]
        return executed

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps of a run."""
        return int(self.executed.shape[1])

    def measure(self, number: int) -> Arrays:
        """Errors, densities, recalls and orders; for the first prompt also gains, its frames and calls.

        Of the others nothing is needed but what is measured, so their runs end with it. They are measured in the orders
        that heads settled on with the first prompt, which a plan holds.
        """
        prompt, seed = self.settings.measured_runs[number]
        first = number == 0

        def compute() -> Arrays:
            in_phases = steps_in_phases(self.settings.phases, self.executed)
            steps = measured_steps(in_phases)
            if number >= MEASURED_WHOLLY:
                steps = first_part(steps, self.num_inference_steps)
            chosen = set(known_steps(steps))
            cached = any(isinstance(mode, CachedConfig) for mode in self.settings.modes.values())
            built = {run[0] for phase in in_phases for run in phase if run and cached}
            last_phase = max((phase.start for phase in self.steps_of_phases() if phase), default=0)
            followed = self._followed(in_phases) if first else None
            with ModeProbe(
                self.pipe,
                chosen,
                self.settings.modes,
                self.gain_mode if first and followed is None else None,
                self._phase_at,
                built,
                last_phase if first and followed is None else 0,
                _middle(steps) if first and followed is None else (),
                stops=not first,
                given=None if first else orders_of(self.measure(0)),
                frame_gains=followed,
            ) as probe:
                frames = self._call(prompt, seed, f"measure {number + 1}", ends_early=not first, followed=followed)
            if frames is not None:
                self.results.get(f"dense_{seed}", lambda: {"frames": frames})
            if first:
                self.results.get("calls", probe.recorded.to_arrays)
            arrays = measured_arrays(probe, steps)
            return arrays if followed is None else arrays | self._frame_gains(followed, arrays, in_phases)

        return self.results.get(f"measured_{number}", compute)

    def _followed(self, in_phases: list[list[list[int]]]) -> FrameGains | None:
        """What gathers the gains of the frames, if those are wanted."""
        if self.settings.gains != "frames":
            return None
        steps = {step for phase in in_phases for run in phase for step in followed_steps(run)}
        rungs = self.gain_rungs
        # Of few tiles and of many; see `frame_gains.gains_of_modes`.
        return FrameGains(steps, sorted({rungs[0], rungs[2 * len(rungs) // 3]}, key=rungs.index))

    def _frame_gains(self, followed: FrameGains, arrays: Arrays, in_phases: list[list[list[int]]]) -> Arrays:
        """Gains of heads in modes, and 1 for those of layers and modes, which they contain."""
        found: Arrays = {}
        for number in range(len(arrays["identities"])):
            errors, runs = arrays[f"error_{number}"], [phase[number] for phase in in_phases]
            table = frame_gain_table(followed, number, errors, runs, list(self.settings.modes))
            found |= {f"frame_gain_{number}": table, f"gain_{number}": np.ones(errors.shape[:2])}
        return found

    def steps_of_phases(self) -> list[range]:
        """Steps of each phase."""
        return steps_of_phases(self.settings.phases, self.num_inference_steps)

    def _phase_at(self, step: int) -> int:
        return next(number for number, steps in enumerate(self.steps_of_phases()) if step in steps)

    def error_from_phase(self, phase: int, config: AttentionConfig | Plan) -> float:
        """Mean squared error of the frames of the first measured prompt in a run that is dense before a phase.

        What comes before the phase was computed when the prompt was measured.

        Args:
            phase: Number of the phase.
            config: Dense before it.
        """
        start = self.steps_of_phases()[phase].start
        found = self.compare(f"phase_{phase}", config, self.settings.measured_runs[:1], start)
        self.results.forget("calls")
        return float(found["mse"][0])

    def compare(
        self, name: str, config: AttentionConfig | Plan, runs: list[tuple[str, int]], replay_before: int = 0
    ) -> Arrays:
        """Sparse runs against dense ones, each kept as it is done.

        Args:
            name: The results are kept under.
            config: What to enable.
            runs: Prompts and seeds.
            replay_before: The runs are those of the first measured prompt, and dense before this step: calls until
                then are taken from when it was measured.

        Returns:
            `psnr`, `ssim`, `mse` (of all frames) and `density` of each run.
        """
        rows = [self._compare_one(name, config, prompt, seed, replay_before) for prompt, seed in runs]
        return {key: np.array([row[key] for row in rows], np.float64) for key in FIGURES}

    def dense(self, prompt: str, seed: int) -> np.ndarray[Any, Any]:
        """Frames of the dense run."""

        def compute() -> Arrays:
            frames = self._call(prompt, seed, "dense")
            assert frames is not None, "only measured runs end early"
            return {"frames": frames}

        frames: np.ndarray[Any, Any] = self.results.get(f"dense_{seed}", compute)["frames"]
        return frames

    def _compare_one(
        self, name: str, config: AttentionConfig | Plan, prompt: str, seed: int, replay_before: int
    ) -> Arrays:
        def compute() -> Arrays:
            assert self.executed.any(), "the first dense run is also the one that steps are counted in"
            dense = self.dense(prompt, seed)
            calls = calls_before(self.results.get("calls", dict), replay_before) if replay_before else []
            transformers = [module for _, module in find_transformers(self.pipe)]
            with replayed(transformers, calls), enable(self.pipe, config) as session:
                sparse = self._call(prompt, seed, name)
                density = session.stats.density()
            assert sparse is not None, "only measured runs end early"
            if sparse.shape != dense.shape:
                raise InvalidInputError(f"{name}: frames {sparse.shape}, dense {dense.shape}: the calls must agree")
            # Videos are large: with a folder they are read again when they are needed.
            self.results.forget(f"dense_{seed}")
            fidelity = measure_fidelity(dense, sparse)
            mse = float(np.square(dense - sparse, dtype=np.float64).mean())
            figures = {"psnr": fidelity.psnr, "ssim": fidelity.ssim, "mse": mse, "density": density}
            return {key: np.array(value, np.float64) for key, value in figures.items()}

        return self.results.get(f"{name}_{seed}", compute)

    def noise_floor(self) -> Arrays:
        """Dense attention through another kernel, ours with all tiles: what no promise can mean to exceed."""
        every_tile = StaticConfig(pattern="dense", schedule=ALL_SPARSE, min_tokens=0)
        return self.compare("noise_floor", every_tile, self.settings.verified_runs[:1])

    @property
    def gain_rungs(self) -> list[str]:
        """The modes that gains may be measured with: all pyramids of the ladder, or else all of adaptive, or any.

        They must not spoil the frames, whose error stops growing then; pyramids err least at equal density.
        """
        sparse = {name: mode for name, mode in self.settings.modes.items() if isinstance(mode, AttentionConfig)}
        kinds = (PyramidConfig, AdaptiveConfig, AttentionConfig)
        return next(filter(None, ([name for name, mode in sparse.items() if isinstance(mode, kind)] for kind in kinds)))

    @property
    def gain_mode(self) -> str:
        """From the middle of the rungs: what gains of layers and of the last phase are measured with."""
        return self.gain_rungs[(len(self.gain_rungs) - 1) // 2]

    def _call(
        self, prompt: str, seed: int, label: str, *, ends_early: bool = False, followed: FrameGains | None = None
    ) -> np.ndarray[Any, Any] | None:
        """One run; frames `[F, H, W, 3]`, float32 in [0, 1], or `None` of one that was to end early."""
        self.bar.set_postfix_str(label, refresh=True)
        if self.on_run is not None:
            self.on_run(label)
        generator = torch.Generator("cpu").manual_seed(seed)
        try:
            if followed is None:
                frames = self.pipe(prompt=prompt, generator=generator, **{**self.settings.call, "output_type": "np"})
                frames = frames.frames[0]
            else:
                frames = followed_frames(self.pipe, followed, prompt=prompt, generator=generator, **self.settings.call)
        except MeasuringDoneError:
            assert ends_early, "raised where that was asked for"
            if hasattr(self.pipe, "maybe_free_model_hooks"):
                # What the pipeline does itself at the end of a call: offloaded parts go back.
                self.pipe.maybe_free_model_hooks()
            return None
        finally:
            self.bar.update()
        frames = np.asarray(frames, dtype=np.float32)
        if not np.isfinite(frames).all():
            raise InvalidInputError(
                f"{label}: the frames have NaN or infinite values, which nothing can be held against"
            )
        return frames


def first_part(steps: list[list[int | None]], num_inference_steps: int) -> list[list[int | None]]:
    """Of the measured steps those in the first part of the run, or else the first one alone.

    Args:
        steps: By `measured_steps`.
        num_inference_steps: Of the run.
    """
    end = max(FIRST_PART * num_inference_steps, min(known_steps(steps)) + 1)
    return [[None if step is None or step >= end else step for step in row] for row in steps]


def _middle(steps: list[list[int | None]]) -> set[int]:
    """The measured step of each transformer in the middle one of the phases that it runs in."""
    found = set()
    for row in zip(*steps, strict=True):
        known = [step for step in row if step is not None]
        if known:
            found.add(known[len(known) // 2])
    return found
