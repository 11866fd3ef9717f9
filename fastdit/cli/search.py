"""`fastdit search`: the cheapest plan for a model that keeps a promised quality."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.call_options import DEFAULT_CALL, CallOptions
from fastdit.cli.generate import call_arguments
from fastdit.config import config_from_dict
from fastdit.errors import ConfigError, OutputError
from fastdit.plan import Plan
from fastdit.search.cost import CostModel
from fastdit.search.find_plan import find_plan
from fastdit.search.settings import DEFAULT_PHASES


@Parameter(name="*", group="Aim (exactly one)")
@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the plan must reach.

    Args:
        min_psnr: Promise: mean PSNR against the dense runs, in dB.
        min_ssim: Promise: mean SSIM against the dense runs.
        density: Budget: share of attention scores over the whole run.
        speedup: Budget: how much faster attention is to be, by the cost model.
    """

    min_psnr: float | None = None
    min_ssim: float | None = None
    density: float | None = None
    speedup: float | None = None


def search(
    *,
    prompts: Path,
    output: Path,
    model: str = "tiny",
    aim: Aim = Aim(),
    phases: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = DEFAULT_PHASES,
    ladder: Literal["default", "wide"] = "default",
    gains: Literal["frames", "calls"] = "frames",
    num_measured: int | None = None,
    num_screening: int = 2,
    max_rounds: int = 10,
    refresh_every: int = 1,
    margin: float = 0.3,
    confidence: float = 0.8,
    seed: int = 0,
    bench: Path | None = None,
    resume: bool = False,
    call: CallOptions = DEFAULT_CALL,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Find the cheapest plan that keeps a promised quality: a method for each head and phase of denoising.

    Finished pieces are kept in OUTPUT.search while it runs; a stopped search goes on with --resume.

    Args:
        prompts: Text file, one calibration prompt per line.
        output: Where the plan is written, as JSON.
        model: "tiny", a Diffusers folder, or a Hub id.
        aim: What the plan must reach.
        phases: Ends of the phases as shares of the run.
        ladder: Methods and densities to choose from: pyramids from .06 on, or also skip, static patterns, and adaptive
            from .02 on ("wide").
        gains: How it is measured what errors of heads matter: by gradients of the frames, or, for models too large for
            those, by repeated transformer calls and further runs.
        num_measured: Prompts to measure on, the others verify the promise; default half of them, at most 4.
        num_screening: Prompts that plans are tried on before one is verified on all that verify.
        max_rounds: Plans that are tried at most.
        refresh_every: Steps that plans keep masks for, in all phases but the first; what that errs is verified.
        margin: dB on top of the promise.
        confidence: Probability with which a plan is to keep --min-psnr on prompts that were not run.
        seed: First seed.
        bench: JSON of `fastdit bench kernels` on this machine, for the costs; without it scores alone are counted.
        resume: Go on with a stopped search.
        call: Arguments of the pipeline call.
        json_output: Print the plan's promise and measurements as JSON on standard output.
    """
    directory = _run_directory(output, resume)
    lines = _read_prompts(prompts)
    cost_model = None if bench is None else CostModel.from_bench(bench)
    from fastdit_pipelines.loading import load_pipeline

    arguments, _ = call_arguments(model, dataclasses.asdict(call))
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    plan = find_plan(
        pipe,
        lines,
        **dataclasses.asdict(aim),
        call=arguments,
        phases=phases,
        ladder=None if ladder == "default" else ladder,
        gains=gains,
        num_measured=num_measured,
        num_screening=num_screening,
        max_rounds=max_rounds,
        refresh_every=refresh_every,
        margin=margin,
        confidence=confidence,
        seed=seed,
        cost_model=cost_model,
        run_directory=directory,
    )
    plan.save(output)
    shutil.rmtree(directory, ignore_errors=True)
    if json_output:
        print(json.dumps(describe(plan)))
    else:
        print_plan(plan, str(output))


def describe(plan: Plan) -> dict[str, Any]:
    """The figures of a plan as plain data."""
    return {
        "promise": plan.promise,
        "keeps_promise": plan.keeps_promise,
        "measured": plan.measured,
        "predicted_error": plan.predicted_error,
        "predicted_cost": plan.predicted_cost,
        "grid": plan.grid.model_dump(),
        "num_inference_steps": plan.num_inference_steps,
        "transformers": [one.model_dump() for one in plan.transformers],
        "token_orders": count_orders(plan),
        "phases": [{"until": phase.until, "heads": count_modes(plan, i)} for i, phase in enumerate(plan.phases)],
    }


def count_modes(plan: Plan, phase: int) -> dict[str, int]:
    """How many heads have each mode in a phase, in the order of the plan's modes."""
    names = [name for table in plan.phases[phase].modes for row in table for name in row]
    return {name: names.count(name) for name in plan.modes if name in names}


def count_orders(plan: Plan) -> dict[str, int]:
    """In all phases together, how many heads have several token orders to choose from, and in how many it is fixed."""
    settings = {name: mode for name, mode in plan.modes.items() if isinstance(mode, dict)}
    choosing = {name for name, mode in settings.items() if len(config_from_dict(mode).order_pairs) > 1}
    found = {"heads": 0, "fixed": 0}
    for phase in plan.phases:
        for number, table in enumerate(phase.modes):
            for layer, row in enumerate(table):
                pairs = (None,) * len(row) if phase.orders is None else phase.orders[number][layer]
                open_heads = [pair for pair, name in zip(pairs, row, strict=True) if name in choosing]
                found["heads"] += len(open_heads)
                found["fixed"] += sum(pair is not None for pair in open_heads)
    return found


def print_plan(plan: Plan, title: str) -> None:
    """Promise, measurements and modes by phase, as tables."""
    console = Console()
    table = Table("mode", *(f"until {phase.until:.0%}" for phase in plan.phases), title=f"{title}: heads by mode")
    counts = [count_modes(plan, number) for number in range(len(plan.phases))]
    for name in plan.modes:
        table.add_row(name, *(str(count.get(name, "")) for count in counts))
    console.print(table)
    asked = ", ".join(f"{name} {value:g}" for name, value in plan.promise.items())
    found = ", ".join(f"{name} {value:.4g}" for name, value in plan.measured.items())
    verdict = {True: "kept", False: "NOT kept, this is the best that was found", None: "a budget"}[plan.keeps_promise]
    console.print(f"asked for: {asked or 'nothing'} ({verdict})", highlight=False)
    console.print(f"measured: {found or 'nothing'}", highlight=False)
    orders = count_orders(plan)
    console.print(
        f"token orders: fixed for {orders['fixed']} of the {orders['heads']} heads that have a choice", highlight=False
    )
    console.print(f"predicted: cost {plan.predicted_cost:.3f} of dense attention, error {plan.predicted_error:.3g}")


def _run_directory(output: Path, resume: bool) -> Path:
    """Where pieces are kept; checked before anything is loaded."""
    directory = output.with_name(output.name + ".search")
    if directory.exists() and not resume:
        raise ConfigError(f"{str(directory)!r} holds a stopped search: give --resume to go on with it, or remove it")
    if output.is_dir() or not output.parent.is_dir():
        raise OutputError(f"output {str(output)!r} cannot be written: give a file in an existing folder")
    return directory


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts {str(path)!r} cannot be read: {error}") from error
    found = [line for line in lines if line]
    if not found:
        raise ConfigError(f"prompts {str(path)!r} is empty: accepted is one prompt per line")
    return found
