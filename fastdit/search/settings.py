"""What a search is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdit.config import CachedConfig
from fastdit.errors import ConfigError
from fastdit.search.cost import CostModel
from fastdit.search.identity import fingerprint
from fastdit.search.ladder import Mode, check_ladder, default_ladder
from fastdit.validation import check_count, check_fraction, check_positive

DEFAULT_PHASES = (0.08, 0.17, 0.5, 1.0)
# Of the files in a run directory; raised when what they hold changes.
RESULT_FORMAT = 8
# Arguments of the pipeline's call that the search gives itself.
OWN_ARGUMENTS = ("prompt", "prompt_embeds", "generator", "output_type", "return_dict")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """A search, without its pipeline.

    Args:
        prompts: Calibration prompts. The first are measured on, the others verify the promise; with a single prompt
            another seed verifies.
        min_psnr: Promise: mean PSNR against the dense runs, in dB.
        min_ssim: Promise: mean SSIM against the dense runs.
        density: Budget instead of a promise: share of attention scores over the run.
        speedup: Budget instead of a promise: how much faster attention is to be, by the cost model.
        call: Arguments of the pipeline's call besides prompt, seed and output type, e.g. its size.
        phases: Ends of the phases as shares of the run.
        ladder: Modes to choose from; `None` for `default_ladder()`, "wide" for the wide one.
        gains: How it is measured what errors of heads matter: by gradients of the frames ("frames"), or by repeated
            transformer calls and further runs ("calls").
        num_measured: Prompts to measure on; `None` for half of them, at most 4. The first one is measured in all
            phases, further ones in the first quarter of the run.
        num_screening: Prompts that plans are tried on before one is verified on all of those that verify.
        cost_model: What modes cost.
        refresh_every: Steps that plans keep masks for, in all phases but the first. What old masks err shows where
            plans are verified, not where modes are measured.
        margin: Added to the promise: verification runs must reach `min_psnr + margin` dB, or close a share
            `margin / 10` of the distance of `min_ssim` to 1.
        confidence: Probability with which a verified plan is to keep `min_psnr` on prompts that were not run, at least
            .5, where the doubt that few runs leave is not allowed for. Prompts are taken to scatter normally.
        max_rounds: Plans that are tried at most.
        seed: First seed; prompt number `i` runs with `seed + i`.
    """

    prompts: Sequence[str]
    min_psnr: float | None = None
    min_ssim: float | None = None
    density: float | None = None
    speedup: float | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[float, ...] = DEFAULT_PHASES
    ladder: Mapping[str, Mode] | Literal["wide"] | None = None
    gains: Literal["frames", "calls"] = "frames"
    num_measured: int | None = None
    num_screening: int = 2
    cost_model: CostModel = field(default_factory=CostModel)
    refresh_every: int = 1
    margin: float = 0.3
    confidence: float = 0.8
    max_rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        prompts = tuple(self.prompts)
        if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            raise ConfigError("prompts: accepted are one or more non-empty strings")
        object.__setattr__(self, "prompts", prompts)
        check_count("refresh_every", self.refresh_every, 1)
        object.__setattr__(self, "ladder", self._checked_ladder())
        aims = [name for name in ("min_psnr", "min_ssim", "density", "speedup") if getattr(self, name) is not None]
        if len(aims) != 1:
            given = " and ".join(aims) or "no aim"
            raise ConfigError(f"{given} given: accepted is exactly one of min_psnr, min_ssim, density, speedup")
        for name in ("min_psnr", "speedup"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("min_ssim", "density"):
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name))
        ends = list(self.phases)
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1.0:
            raise ConfigError(f"phases={self.phases}: accepted are rising shares of the run that end with 1.0")
        own = sorted(set(OWN_ARGUMENTS) & set(self.call))
        if own:
            raise ConfigError(f"call has {', '.join(own)}: the search gives {'it' if len(own) == 1 else 'them'} itself")
        if self.gains not in ("frames", "calls"):
            raise ConfigError(f'gains={self.gains!r}: accepted are "frames" and "calls"')
        if self.num_measured is None:
            object.__setattr__(self, "num_measured", min(4, max(1, len(prompts) // 2)))
        check_count("num_measured", self.num_measured or 0, 1)
        check_count("num_screening", self.num_screening, 1)
        check_count("max_rounds", self.max_rounds, 1)
        check_count("seed", self.seed)
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"margin={self.margin}: accepted is a finite number of at least 0")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: accepted is a number from 0.5 to less than 1")

    def _checked_ladder(self) -> dict[str, Mode]:
        """The ladder that is given, or one made by the cost model and `refresh_every`."""
        given = self.ladder
        if isinstance(given, str) and given != "wide":
            raise ConfigError(f'ladder={given!r}: accepted are "wide", modes by name, or None')
        # Reusing masks saves nothing where selecting them is free.
        cached = bool(self.cost_model.selection) and self.refresh_every == 1
        ladder = check_ladder(given if isinstance(given, Mapping) else default_ladder(cached=cached, wide=bool(given)))
        if self.refresh_every > 1 and any(isinstance(mode, CachedConfig) for mode in ladder.values()):
            raise ConfigError(f"refresh_every={self.refresh_every}: the ladder has cached rungs, so 1 is accepted")
        return ladder

    @property
    def modes(self) -> dict[str, Mode]:
        """The ladder, dense first."""
        assert isinstance(self.ladder, Mapping), "made one at construction"
        return dict(self.ladder)

    @property
    def promise(self) -> dict[str, float]:
        """What was asked for, by name."""
        names = ("min_psnr", "min_ssim", "density", "speedup")
        return {name: float(getattr(self, name)) for name in names if getattr(self, name) is not None}

    @property
    def measured_runs(self) -> list[tuple[str, int]]:
        """Prompts and seeds to measure on."""
        return [(prompt, self.seed + i) for i, prompt in enumerate(self.prompts)][: self.num_measured]

    @property
    def verified_runs(self) -> list[tuple[str, int]]:
        """Prompts and seeds to verify on, none of them measured on."""
        runs = [(prompt, self.seed + i) for i, prompt in enumerate(self.prompts)][self.num_measured :]
        return runs or [(self.prompts[0], self.seed + len(self.prompts))]

    @property
    def screening_runs(self) -> list[tuple[str, int]]:
        """Those that plans are tried on first, the first of `verified_runs`."""
        return self.verified_runs[: self.num_screening]

    def to_dict(self) -> dict[str, Any]:
        """Everything that results depend on, as plain data."""
        # As rows, because results count modes by their place.
        modes = [[name, mode if isinstance(mode, str) else mode.to_dict()] for name, mode in self.modes.items()]
        return {
            "format": RESULT_FORMAT,
            "prompts": list(self.prompts),
            "call": fingerprint(self.call),
            "phases": list(self.phases),
            "ladder": modes,
            "gains": self.gains,
            "num_measured": self.num_measured,
            "seed": self.seed,
        }
