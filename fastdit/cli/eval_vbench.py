"""`fastdit eval vbench`: the official VBench, from the list of clips to the submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.eval_vbench_generate import generate
from fastdit.errors import ConfigError

app = App(name="vbench", help="Official VBench: plan, generate, doctor, run, score, pack.")
app.command(generate)
Json = Annotated[bool, Parameter(name="--json")]


@app.command
def plan(
    *,
    suite: Path,
    output: Path,
    benchmark: str = "vbench",
    dimensions: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    samples: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompts_used: Path | None = None,
    json_output: Json = False,
) -> None:
    """List the clips of a prompt suite, with VBench's file names and a seed for each.

    Writes manifest.json and a copy of the suite. 5 samples a prompt, 25 for temporal_flickering; VBench-2.0: 3, and 20
    for Diversity. Clips under 5.0 s belong to VBench, clips of 5.0 s and more to VBench-Long.

    Args:
        suite: VBench_full_info.json, which the package vbench brings, or another suite in its format.
        output: Folder of the run.
        benchmark: vbench, vbench-long or vbench-2.0.
        dimensions: Only prompts of these dimensions.
        samples: Clips of every prompt instead of the official number; for trials, never for a score.
        limit: Only the first prompts; for trials, never for a score.
        seed: Seed of sample 0; sample i has seed + i.
        prompts_used: Text file with a longer prompt for every entry of the suite; files keep the suite's prompts.
        json_output: Print the counts as JSON on standard output.
    """
    from fastdit_eval.vbench.files import RunFolder
    from fastdit_eval.vbench.manifest import build_manifest, is_official, write_plan

    manifest = build_manifest(
        suite,
        benchmark=benchmark,
        dimensions=dimensions,
        samples=samples,
        seed=seed,
        prompts_used=prompts_used,
        limit=limit,
    )
    run = RunFolder(output)
    write_plan(run, suite, manifest)
    report: dict[str, Any] = {
        "benchmark": benchmark,
        "num_prompts": len(manifest.prompts),
        "num_clips": len(manifest.clips),
        "official_sample_counts": is_official(manifest),
        "dimensions": {
            name: [manifest.num_prompts(name), len(manifest.expected(name))] for name in manifest.dimensions
        },
        "manifest": str(run.manifest),
    }
    if json_output:
        print(json.dumps(report))
        return
    table = Table("dimension", "prompts", "clips measured", title=f"{benchmark}: {report['num_clips']} clips to make")
    for name, (prompts, clips) in report["dimensions"].items():
        table.add_row(name, str(prompts), str(clips))
    console = Console()
    console.print(table)
    console.print(f"written to {run.manifest}", highlight=False, soft_wrap=True)


@app.command
def doctor(*, vbench_python: Path, cache: Path | None = None, json_output: Json = False) -> None:
    """Say which dimensions an interpreter with the official package can run without a network.

    Args:
        vbench_python: Python of the environment that has the package vbench.
        cache: Folder of VBench's weights; default its own, ~/.cache/vbench.
        json_output: Print everything as JSON on standard output.
    """
    from fastdit_eval.vbench.foreign import examine

    report = examine(vbench_python, cache)
    if json_output:
        print(json.dumps(report))
        return
    console = Console()
    table = Table("dimension", "runs offline", "missing", title=f"vbench {report['vbench']}, torch {report['torch']}")
    for name, found in report["dimensions"].items():
        table.add_row(name, "yes" if found["ready"] else "no", "\n".join(found["needs"]))
    console.print(table)
    faults = [f"{name}: {error}" for name, error in report["modules"].items() if error is not None]
    for line in (
        f"python {report['python']}, CUDA {'yes' if report['cuda'] else 'no'}, ffmpeg {report['ffmpeg'] or 'missing'}",
        f"weights: {report['cache']}; prompt suite: {report['suite'] or 'not in the package'}",
        *faults,
    ):
        console.print(line, highlight=False, soft_wrap=True)


@app.command
def run(
    *,
    output: Path,
    vbench_python: Path,
    dimensions: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    mode: str = "vbench_standard",
    device: str = "cpu",
    cache: Path | None = None,
    filtered_videos: Path | None = None,
    random_weights: bool = False,
    allow_partial: bool = False,
    json_output: Json = False,
) -> None:
    """Measure the clips with the official package, in its own interpreter; its result files stay as it wrote them.

    Dimensions that have a result are not measured again.

    Args:
        output: Folder of the run.
        vbench_python: Python of the environment that has the package vbench.
        dimensions: What to measure; default all that the plan has.
        mode: vbench_standard, for scores, or custom_input, for clips of any prompts.
        device: cpu or cuda.
        cache: Folder of VBench's weights; default its own.
        filtered_videos: Folder that VBench's static filter wrote, for temporal_flickering.
        random_weights: The cache holds random weights, to try the way; such results are never scored.
        allow_partial: Measure an incomplete set; such results are never scored.
        json_output: Print the meta data as JSON on standard output.
    """
    from fastdit_eval.vbench.files import RunFolder
    from fastdit_eval.vbench.manifest import Manifest
    from fastdit_eval.vbench.naming import LONG_RULE
    from fastdit_eval.vbench.official import OfficialRun, run_official

    folder = RunFolder(output)
    how = OfficialRun(
        python=vbench_python,
        dimensions=dimensions,
        mode=mode,
        device=device,
        cache=cache,
        filtered_videos=filtered_videos,
        random_weights=random_weights,
        allow_partial=allow_partial,
    )
    meta = run_official(folder, Manifest.load(folder.manifest), how)
    if json_output:
        print(json.dumps(meta))
        return
    table = Table("dimension", "prompts", "clips", "weights", "mode", title="official results")
    for name, entry in meta["dimensions"].items():
        prompts, expected, found = entry["coverage"]
        table.add_row(name, str(prompts), f"{found} of {expected}", entry["weights"], entry["mode"])
    console = Console()
    console.print(table)
    if meta["leaderboard_edition"] == "vbench-long":
        console.print(f"these clips belong to VBench-Long. {LONG_RULE}", soft_wrap=True)
    console.print(f"results in {folder.results}/", highlight=False, soft_wrap=True)


@app.command
def score(*, output: Path, results: Path | None = None, partial: bool = False, json_output: Json = False) -> None:
    """Compute total, quality and semantic score as published; refused for incomplete results.

    Args:
        output: Folder of the run.
        results: Folder of official results of VBench-2.0 or VBench-Long, which other environments make.
        partial: Report the dimensions that are there, without a total.
        json_output: Print the scores as JSON on standard output.
    """
    from fastdit_eval.vbench.files import RunFolder
    from fastdit_eval.vbench.manifest import Manifest
    from fastdit_eval.vbench.score import score_results, score_run

    folder = RunFolder(output)
    manifest = Manifest.load(folder.manifest)
    if results is None:
        report = score_run(folder, manifest, partial=partial)
    else:
        report = score_results(results, manifest.benchmark, partial=partial)
    if json_output:
        print(json.dumps(report))
    else:
        _print_scores(report)


def _print_scores(report: dict[str, Any]) -> None:
    table = Table("", "raw", "normalised", title=report["benchmark"])
    for name, row in report["dimensions"].items():
        normalised = row.get("normalised")
        table.add_row(name, f"{row['raw']:.5f}", "" if normalised is None else f"{normalised:.5f}")
    table.add_section()
    for name, value in report.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.5f}", "")
    if report["total"] is None:
        table.add_row("total", "none", "")
    console = Console()
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


@app.command
def pack(*, output: Path, target: Path) -> None:
    """Write the zip file for VBench's leaderboard: the official result files and nothing else.

    Args:
        output: Folder of the run.
        target: The zip file.
    """
    from fastdit_eval.vbench.files import RunFolder
    from fastdit_eval.vbench.manifest import Manifest
    from fastdit_eval.vbench.pack import pack_results

    if target.suffix != ".zip":
        raise ConfigError(f"target {str(target)!r}: accepted is a name that ends in .zip")
    folder = RunFolder(output)
    found = pack_results(folder, Manifest.load(folder.manifest), target)
    print(f"{target}: " + ", ".join(f"{name} {value:.5f}" for name, value in found.items()))
