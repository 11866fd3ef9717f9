"""`fastdit eval suite`: all methods and plans compared on the bundled model, as one table."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markdown import Markdown

import fastdit
from fastdit.cli.eval_fidelity import progress_bar
from fastdit.cli.generate import call_arguments
from fastdit.cli.judge import ClipOptions
from fastdit.cli.process_place import process_place
from fastdit.cli.suite_rows import LadderOptions, build_rows
from fastdit.config import AttentionConfig
from fastdit.environment import describe_environment
from fastdit.plan import Plan
from fastdit.validation import check_count, check_fraction
from fastdit.whole_files import write_json

if TYPE_CHECKING:
    from fastdit_eval.suite.clip_store import ClipStore, MakeClip
    from fastdit_pipelines.tiny.suite import Sample

# Dense attention by another backend: how much two dense runs differ.
FLOOR = "dense-math"
DENSE = "dense"
DEFAULT_CLIP = ClipOptions()
DEFAULT_LADDER = LadderOptions()


def suite(
    *,
    output: Path | None = None,
    model: str = "tiny",
    num_prompts: int = 20,
    seed: int = 0,
    two_objects: float = 0.0,
    floor: bool = True,
    convention: str = "default",
    metrics: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = None,
    list_rows: Annotated[bool, Parameter(name="--list", negative="")] = False,
    clip: ClipOptions = DEFAULT_CLIP,
    ladder: LadderOptions = DEFAULT_LADDER,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare all methods with dense: density, speed-up, fidelity, offline quality, and the judge's score.

    Writes suite.json, table.md, tradeoffs.png, pictures/ and the report into the output folder. A stopped run goes on
    when it is started again with the same folder, clip by clip; more prompts or methods may be added to it. Processes
    of accelerate launch share the prompts.

    Args:
        output: Folder of the run; default suite-MODEL.
        model: "tiny", a Diffusers folder, or a Hub id. Prompts and judge are those of the bundled world.
        num_prompts: Prompts, of combinations kept out of training.
        seed: Seed of the prompts.
        two_objects: Share of prompts with two objects.
        floor: Also run dense with PyTorch's plain attention: the noise floor.
        convention: Of the fidelity metrics: default, pab or svg.
        metrics: Fidelity metrics, e.g. psnr_rgb ssim; default all of the convention.
        list_rows: Print the rows with their settings and stop.
        clip: Arguments of the pipeline call.
        ladder: Methods.
        json_output: Print suite.json, or with --list the settings, on standard output.
    """
    from fastdit_eval.fidelity_run import choose_metrics
    from fastdit_eval.suite.clip_store import ClipStore
    from fastdit_pipelines.bundled_models import method_defaults
    from fastdit_pipelines.tiny.suite import draw_samples

    check_count("num_prompts", num_prompts, 1)
    check_fraction("two_objects", two_objects)
    choose_metrics(convention, metrics)
    call, fps = call_arguments(model, asdict(clip))
    methods = build_rows(ladder, lambda method: method_defaults(model, method), _bundled_plans(model, call))
    if list_rows:
        _print_rows(methods, json_output)
        return
    rows: dict[str, AttentionConfig | None] = {DENSE: None, **({FLOOR: None} if floor else {}), **methods}
    samples = draw_samples(num_prompts, seed, two_objects)
    store = ClipStore(Path(f"suite-{Path(model).name}") if output is None else output)
    setup = {"model": model, "seed": seed, "two_objects": two_objects, "call": call, "fps": fps}
    rank, num_processes, device = process_place()
    _begin(store, rows, setup, samples)
    _make_missing(store, rows, setup, samples, (rank, num_processes, device))
    report = _compare(store, setup, samples, rows, convention, metrics)
    if report is None:
        print(f"process {rank + 1} of {num_processes} is done; others are still at work", file=sys.stderr)
    elif json_output:
        print(json.dumps(report, allow_nan=False))
    else:
        console = Console()
        Console(width=max(console.width, 150)).print(Markdown((store.root / "table.md").read_text()))
        console.print(f"written to {store.root}/", highlight=False)


def _bundled_plans(model: str, call: dict[str, Any]) -> dict[str, Plan]:
    """Plans that ship with the model and were made at the size of the call."""
    from fastdit_pipelines.bundled_models import model_plans
    from fastdit_pipelines.shape_reading import find_shape

    plans = {name: Plan.load(path) for name, path in model_plans(model).items()}
    if not plans:
        return {}
    grid = find_shape(model).grid(call["height"], call["width"], call["num_frames"])
    return {
        name: plan
        for name, plan in plans.items()
        if (plan.grid.frames, plan.grid.height, plan.grid.width) == (grid.frames, grid.height, grid.width)
    }


def _print_rows(methods: dict[str, AttentionConfig], json_output: bool) -> None:
    configs = {row: config.to_dict() for row, config in methods.items()}
    if json_output:
        print(json.dumps(configs))
        return
    for row, config in configs.items():
        shown = config if config["method"] != "plan" else {"method": "plan"}
        print(f"{row}: {json.dumps(shown)}")


def _begin(
    store: ClipStore, rows: dict[str, AttentionConfig | None], setup: dict[str, Any], samples: Sequence[Sample]
) -> None:
    """Write what the clips are made with, or refuse a folder of other clips."""
    from fastdit_pipelines.run_record import begin_run
    from fastdit_pipelines.tiny.suite import build_suite

    begin_run(store.root, setup)
    for row, config in rows.items():
        begin_run(store.root, {"config": None if config is None else config.to_dict()}, f"run_{row}.json")
    write_json(store.root / "prompts.json", build_suite([sample.prompt for sample in samples]))


def _make_missing(
    store: ClipStore,
    rows: dict[str, AttentionConfig | None],
    setup: dict[str, Any],
    samples: Sequence[Sample],
    place: tuple[int, int, str | None],
) -> None:
    """Make this process's clips that are not there; the model is loaded only if there are any."""
    from tqdm.auto import tqdm

    from fastdit_eval.suite.clip_store import make_clips
    from fastdit_pipelines.loading import load_pipeline

    rank, num_processes, device = place
    names = [sample.name for sample in samples]
    share = range(rank, len(names), num_processes)
    missing = [row for row in rows for number in share if store.read_record(row, names[number]) is None]
    if not missing:
        return
    pipe = load_pipeline(setup["model"], device=device)
    for config in {row: rows[row] for row in missing}.values():
        if config is not None:
            # A pipeline that cannot be enabled is refused before the dense clips, not after them.
            fastdit.enable(pipe, config).close()
    make = _maker(pipe, rows, setup, samples, num_processes)
    with tqdm(total=len(share) * len(rows), desc="suite", unit="clip") as bar:

        def progress(text: str, made: bool) -> None:
            bar.update()
            bar.set_postfix_str(text[:60])

        make_clips(store, list(rows), names, share, make, progress)


def _maker(
    pipe: Any,
    rows: dict[str, AttentionConfig | None],
    setup: dict[str, Any],
    samples: Sequence[Sample],
    num_processes: int,
) -> MakeClip:
    from fastdit_eval.speed_run import density_cells
    from fastdit_pipelines.generation import GenerationSettings, generate, warm_up, write_video
    from fastdit_pipelines.tiny.caption import parse_caption
    from fastdit_pipelines.tiny.judge_run import judge_frames

    process = uuid.uuid4().hex
    warm: list[bool] = []

    def make(row: str, number: int, video: Path) -> tuple[Any, dict[str, Any]]:
        sample, config = samples[number], rows[row]
        settings = GenerationSettings(prompt=sample.prompt, seed=sample.seed, **setup["call"])
        if not warm:
            warm_up(pipe, settings)
            warm.append(True)
        start = time.perf_counter()
        # Enabled for each clip anew, so that no clip depends on those before it.
        with _attention(pipe, row, config) as session:
            frames = generate(pipe, settings, row)
        seconds = time.perf_counter() - start
        write_video(frames, video, setup["fps"])
        return frames, {
            "prompt": sample.prompt,
            "seed": sample.seed,
            "two_objects": sample.two_objects,
            "video_path": video.relative_to(video.parents[2]).as_posix(),
            "seconds": seconds,
            "density": 1.0 if session is None else session.stats.density(),
            "density_cells": [] if session is None else density_cells(session.stats),
            "process": process,
            "num_processes": num_processes,
            **judge_frames(frames, parse_caption(sample.prompt)),
        }

    return make


def _attention(pipe: Any, row: str, config: AttentionConfig | None) -> AbstractContextManager[fastdit.Session | None]:
    if config is not None:
        return fastdit.enable(pipe, config)
    return _plain_attention() if row == FLOOR else nullcontext()


@contextmanager
def _plain_attention() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _compare(
    store: ClipStore,
    setup: dict[str, Any],
    samples: Sequence[Sample],
    rows: dict[str, AttentionConfig | None],
    convention: str,
    metrics: tuple[str, ...] | None,
) -> dict[str, Any] | None:
    """Measure and compare, if all clips are there and no other process is at it."""
    from fastdit_eval.suite.comparison import compare_rows
    from fastdit_eval.suite.measurements import Measurement
    from fastdit_eval.vbench.clip_files import claim

    clips = tuple(sample.name for sample in samples)
    if not all(store.is_complete(row, clips) for row in rows):
        return None
    everything = _earlier_rows(store, rows, clips)
    with claim(store.root / "locks" / "comparison.lock") as mine:
        if not mine:
            return None
        context = {"environment": describe_environment(), "command": " ".join(["fastdit", *sys.argv[1:]])}
        for row in everything:
            _write_judged(store, row, clips, context)
        how = Measurement(
            clips=clips,
            fps=setup["fps"],
            convention=convention,
            metrics=metrics,
            floor=FLOOR if FLOOR in everything else None,
            context=context,
        )
        with progress_bar("measure") as show:
            return compare_rows(store, everything, how, setup, show)


def _earlier_rows(
    store: ClipStore, rows: dict[str, AttentionConfig | None], clips: tuple[str, ...]
) -> dict[str, dict[str, Any] | None]:
    """Settings of the rows of this call, and of others in the folder that have all clips."""
    found = {row: None if config is None else config.to_dict() for row, config in rows.items()}
    for path in sorted(store.root.glob("run_*.json")):
        row = path.stem.removeprefix("run_")
        if row not in found and store.is_complete(row, clips):
            found[row] = json.loads(path.read_text())["config"]
    return found


def _write_judged(store: ClipStore, row: str, clips: Sequence[str], context: dict[str, Any]) -> None:
    """Write `results/judge-<row>.json`, and the verdicts in VBench's format."""
    from fastdit_eval.result_files import result_path
    from fastdit_pipelines.tiny.suite import shares, vbench_results

    records = list(store.records(row, clips).values())
    kinds = {"shares": False, "shares_two_objects": True}
    chosen = {name: [item for item in records if item["two_objects"] == two] for name, two in kinds.items()}
    result = {name: shares(items) for name, items in chosen.items() if items}
    result.setdefault("shares", result.get("shares_two_objects", {}))
    write_json(result_path(store.root, "judge", row), {"schema": "judge/1", **result, **context})
    write_json(store.root / "judge" / f"{row}_eval_results.json", vbench_results(records))
