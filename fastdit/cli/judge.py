"""`fastdit judge`: how often the bundled model's videos show what their prompts ask for."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

import fastdit
from fastdit.cli.call_options import PipelineOptions
from fastdit.cli.generate import call_arguments
from fastdit.cli.process_place import launched_processes, process_place
from fastdit.cli.sparse_options import DEFAULT_SPARSE, SparseOptions, check_method
from fastdit.config import AttentionConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.validation import check_count
from fastdit.whole_files import write_json

SHOWN_VIDEOS = 12


@Parameter(name="*", group="Video")
@dataclass(frozen=True, kw_only=True)
class ClipOptions(PipelineOptions):
    """Arguments of the pipeline call, and the frame rate.

    Args:
        fps: Frames per second of the written videos.
    """

    fps: int | None = None


def judge(
    *,
    model: str = "tiny",
    num_prompts: int = 200,
    seed: int = 0,
    two_objects: float = 0.0,
    method: str | None = None,
    output: Path | None = None,
    videos: Path | None = None,
    prompts: Path | None = None,
    clip: ClipOptions = ClipOptions(),
    sparse: SparseOptions = DEFAULT_SPARSE,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Make videos of prompts kept out of the bundled model's training and judge them; or judge existing --videos.

    Prints the share of videos that are right, by dimension; "all" is object, color, shape and direction together. Under
    accelerate launch the processes share the prompts, and the last one to end prints.

    Args:
        model: "tiny", a Diffusers folder, or a Hub id.
        num_prompts: Prompts, of combinations kept out of training.
        seed: Seed of the prompts.
        two_objects: Share of prompts with two objects; they get rows of their own.
        method: "dense" (the default), or a sparse method, which is then judged beside dense.
        output: Folder that keeps videos and results; run again with the same folder to go on with a stopped run.
        videos: Judge the .mp4 files of this folder; a file's name is its prompt.
        prompts: JSON file {file name: prompt} for --videos.
        clip: Arguments of the pipeline call.
        sparse: Settings of the sparse method.
        json_output: Print the shares as JSON on standard output.
    """
    method = sparse.choose_method(method, "dense")
    check_method(method, sparse, "dense")
    check_count("num_prompts", num_prompts, 1)
    report: dict[str, Any] | None
    if videos is not None:
        report = _existing(videos, prompts, output)
    elif prompts is not None:
        raise ConfigError("prompts without videos: give --videos too; generated videos take their prompts from --seed")
    elif output is None and launched_processes() > 1:
        raise ConfigError("output is missing: processes of accelerate launch share the prompts through a folder")
    elif output is not None:
        report = _generated(model, num_prompts, seed, two_objects, method, output, clip, sparse)
    else:
        with tempfile.TemporaryDirectory(prefix="fastdit-judge-") as folder:
            report = _generated(model, num_prompts, seed, two_objects, method, Path(folder), clip, sparse)
    if report is None:
        print("the prompts of this process are done; the last process prints the table", file=sys.stderr)
    elif json_output:
        print(json.dumps(report))
    else:
        _print_table(report, model if videos is None else str(videos))


def _existing(videos: Path, prompts: Path | None, output: Path | None) -> dict[str, Any]:
    from fastdit_pipelines.tiny.judge_run import judge_videos
    from fastdit_pipelines.tiny.suite import vbench_results

    results = judge_videos(videos, prompts)
    if output is not None:
        write_json(output / "videos_eval_results.json", vbench_results(results))
    return {**_rows("videos", results), "num_videos": len(results)}


def _generated(
    model: str,
    num_prompts: int,
    seed: int,
    two_objects: float,
    method: str,
    output: Path,
    clip: ClipOptions,
    sparse: SparseOptions,
) -> dict[str, Any] | None:
    from fastdit_pipelines.bundled_models import method_defaults
    from fastdit_pipelines.loading import load_pipeline
    from fastdit_pipelines.run_record import begin_run
    from fastdit_pipelines.tiny.judge_run import collect_results, judge_samples, write_suite
    from fastdit_pipelines.tiny.suite import draw_samples

    call, fps = call_arguments(model, dataclasses.asdict(clip))
    for name in ("height", "width", "num_frames", "num_inference_steps"):
        if name in call:
            check_count(name, call[name], 1)
    samples = draw_samples(num_prompts, seed, two_objects)
    configs: dict[str, AttentionConfig | None] = {"dense": None}
    if method != "dense":
        configs[method] = sparse.build(method, method_defaults(model, method))
    rank, num_processes, device = process_place()
    pipe = load_pipeline(model, device=device)
    for config in configs.values():
        if config is not None:
            # A pipeline that cannot be enabled is refused before the dense videos, not after them.
            fastdit.enable(pipe, config).close()
    record = {"model": model, "seed": seed, "settings": call}
    begin_run(output, record)
    write_suite(output, samples)
    for row, config in configs.items():
        if config is not None:
            # A file of its own: the method may be added to a folder that holds dense videos already.
            begin_run(output, {"config": config.to_dict()}, f"run_{row}.json")
        judge_samples(pipe, samples[rank::num_processes], call, fps, config, output, row)
    report: dict[str, Any] = {}
    for row in configs:
        results = collect_results(samples, output, row)
        # Other processes are still at work; the last one to end prints the table.
        if results is None:
            return None
        _draw_first(results, output, row)
        report |= _rows(row, results)
    return {**report, **record, "num_prompts": num_prompts, "environment": describe_environment()}


def _draw_first(results: Sequence[dict[str, Any]], output: Path, row: str) -> None:
    """Write `<row>_contact_sheet.png`: the first videos, what is wrong with each in its title."""
    from fastdit_eval.contact_sheet import draw_contact_sheet
    from fastdit_pipelines.tiny.judge_run import read_video

    clips = []
    # Somebody who goes on with a run may have moved its videos away; the results do not need them.
    there = [result for result in results if (output / result["video_path"]).is_file()]
    for result in there[:SHOWN_VIDEOS]:
        wrong = [name for name, right in result["verdicts"].items() if not right]
        title = result["prompt"] + (f" (wrong: {', '.join(wrong)})" if wrong else "")
        clips.append((title, read_video(output / result["video_path"])))
    if clips:
        draw_contact_sheet(clips, output / f"{row}_contact_sheet.png")


def _rows(name: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the one-object videos under `name`, of the others under `<name>_two_objects`."""
    from fastdit_pipelines.tiny.suite import shares

    kinds = {name: False, f"{name}_two_objects": True}
    chosen = {row: [item for item in results if item["two_objects"] == two] for row, two in kinds.items()}
    return {row: shares(items) for row, items in chosen.items() if items}


def _print_table(report: dict[str, Any], title: str) -> None:
    rows = {name: value for name, value in report.items() if isinstance(value, dict) and "all" in value}
    main = ("object", "color", "shape", "direction", "all")
    others = [name for row in rows.values() for name in row if name not in main]
    columns = (*main, *dict.fromkeys(others))
    table = Table("share right", *columns, title=f"{title}: videos that show what was asked")
    for name, row in rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "-" for column in columns]
        table.add_row(name.replace("_two_objects", ", two objects"), *cells)
    # Wide enough for all columns where the output is a file.
    console = Console()
    Console(width=max(console.width, 130)).print(table)
