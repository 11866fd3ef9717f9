"""`fastdit eval vbench generate`: the clips of a plan, by one process or by many under `accelerate launch`."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

import fastdit
from fastdit.cli.call_options import DEFAULT_CALL, CallOptions
from fastdit.cli.generate import call_arguments
from fastdit.cli.process_place import process_place
from fastdit.cli.sparse_options import DEFAULT_SPARSE, SparseOptions, load_plan
from fastdit.config import METHODS, AttentionConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.plan import Plan
from fastdit.validation import check_choice, check_count

if TYPE_CHECKING:
    from fastdit_eval.vbench.generation import MakeClip


def generate(
    *,
    output: Path,
    model: str = "tiny",
    method: str | None = None,
    fps: int | None = None,
    batch: int | None = None,
    video: CallOptions = DEFAULT_CALL,
    sparse: SparseOptions = DEFAULT_SPARSE,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Make the clips of a plan that are not there yet. A stopped run goes on; it loses only the clip in work.

    Many processes share a suite: accelerate launch -m fastdit.cli eval vbench generate ... (with --multi_gpu
    --num_processes N, on GPUs or without).

    Args:
        output: Folder of the run, with manifest.json of 'fastdit eval vbench plan'.
        model: "tiny", a Diffusers folder, or a Hub id.
        method: "dense" (the default) or a sparse method.
        fps: Frames per second of the clips; VBench reads it from them, so give the model's own.
        batch: Stop after so many new clips.
        video: Arguments of the pipeline call.
        sparse: Settings of the method.
        json_output: Print what was done as JSON on standard output.
    """
    from fastdit_eval.vbench.files import RunFolder
    from fastdit_eval.vbench.generation import begin_generation, generate_clips, share_of
    from fastdit_eval.vbench.manifest import Manifest
    from fastdit_eval.vbench.naming import LONG_RULE, LONG_SECONDS
    from fastdit_pipelines.loading import load_pipeline

    if batch is not None:
        check_count("batch", batch, 1)
    config, name = _method(model, method, sparse)
    call, rate = call_arguments(model, {**dataclasses.asdict(video), "fps": fps})
    run = RunFolder(output)
    manifest = Manifest.load(run.manifest)
    rank, num_processes, device = process_place()
    begin_generation(
        run,
        {
            "model": model,
            "method": name,
            "config": config.to_dict() if isinstance(config, AttentionConfig) else None,
            "plan": None if sparse.plan is None else json.loads(sparse.plan.read_text()),
            "call": call,
            "fps": rate,
        },
    )
    pipe = load_pipeline(model, device=device)
    make = _maker(pipe, call, rate, config)
    tally = generate_clips(run, manifest, share_of(manifest, rank, num_processes), make, batch)
    report = {"rank": rank, "num_processes": num_processes, **dataclasses.asdict(tally)}
    if json_output:
        # The line in one write: processes that share an unbuffered output would print their ends apart.
        print(json.dumps(report) + "\n", end="")
        return
    console = Console()
    done = f"process {rank + 1} of {num_processes}: {tally.made} clips made, {tally.kept} were there"
    console.print(f"{done}, {tally.elsewhere} in other hands", highlight=False)
    if call.get("num_frames", 0) / rate >= LONG_SECONDS:
        console.print(f"these clips belong to VBench-Long. {LONG_RULE}", soft_wrap=True)


def _method(model: str, method: str | None, sparse: SparseOptions) -> tuple[AttentionConfig | Plan | None, str]:
    """What to enable, and its name."""
    from fastdit_pipelines.bundled_models import method_defaults

    if sparse.plan is not None:
        if method is not None or sparse != SparseOptions(plan=sparse.plan):
            raise ConfigError("plan with a method or its settings: the plan says all, leave them out")
        return load_plan(sparse.plan), "plan"
    name = sparse.choose_method(method, "dense")
    check_choice("method", name, ("dense", *METHODS))
    return (None if name == "dense" else sparse.build(name, method_defaults(model, name))), name


def _maker(pipe: Any, call: dict[str, Any], fps: int, config: AttentionConfig | Plan | None) -> MakeClip:
    from fastdit_pipelines.generation import GenerationSettings, write_video
    from fastdit_pipelines.generation import generate as generate_frames

    environment = describe_environment()

    def make(prompt: str, seed: int, path: Path) -> dict[str, Any]:
        start = time.perf_counter()
        # Enabled for each clip anew, so that no clip depends on which process made others before it.
        with nullcontext() if config is None else fastdit.enable(pipe, config) as session:
            frames = generate_frames(pipe, GenerationSettings(prompt=prompt, seed=seed, **call), prompt)
            density = 1.0 if session is None else session.stats.density()
        seconds = time.perf_counter() - start
        write_video(frames, path, fps)
        return {
            "num_frames": len(frames),
            "height": frames.shape[1],
            "width": frames.shape[2],
            "fps": fps,
            "seconds": seconds,
            "density": density,
            "environment": environment,
        }

    return make
