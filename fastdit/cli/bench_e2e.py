"""`fastdit bench e2e`: whole transformer calls of the released configurations, dense and sparse."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.bench_report import publish_report
from fastdit.environment import describe_environment
from fastdit.search.cards import recognise_card
from fastdit.validation import check_choice, check_count, check_fraction
from fastdit_kernels.bench_machine import describe_machine, machine_line

if TYPE_CHECKING:
    from fastdit_eval.e2e_bench import ModelTask
    from fastdit_pipelines.real_shapes import ModelShape

QUICK_MODELS, QUICK_DENSITIES, DENSITIES = ("wan-1.3b", "cogvideox-5b"), (0.1,), (0.1, 0.2)
# Video tokens of shrunken calls.
CPU_TOKENS, QUICK_CPU_TOKENS = 8192, 4096
# Memory that a call needs beside the weights, in tensors `[S, width]`, roughly; too little ends in a skipped model.
CALL_TENSORS = 24
Pieces = dict[str, Any]


def e2e(
    *,
    quick: bool = False,
    models: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    methods: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    densities: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (),
    resolution: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    repeats: int | None = None,
    tokens: int | None = None,
    device: str | None = None,
    threads: int = 1,
    output: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Time denoising steps of released models with random weights, dense and by every method.

    On a GPU at true sizes; on a CPU shrunken to two layers, two heads and few tokens, which says little of a GPU.

    Args:
        quick: Two models at their smallest size, one density, one round.
        models: wan-1.3b, wan-14b, cogvideox-5b, hunyuan-video, hunyuan-video-1.5; default all.
        methods: adaptive, pyramid, cached, static; default all.
        densities: Shares of key tiles; default 0.1 and 0.2.
        resolution: 480p, 720p; default all that the model was released for.
        repeats: Timed rounds; the median counts.
        tokens: Video tokens of shrunken calls, on a CPU.
        device: cpu or cuda; default cuda where there is one.
        threads: CPU threads.
        output: Folder for e2e.json.
        json_output: Print the report as JSON on standard output.
    """
    from fastdit_eval.bench_methods import BENCH_METHODS
    from fastdit_pipelines.random_models import RANDOM_MODELS, RESOLUTIONS

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("device", device, ("cpu", "cuda"))
    for name, given, known in (
        ("models", models, RANDOM_MODELS),
        ("methods", methods, BENCH_METHODS),
        ("resolution", resolution, RESOLUTIONS),
    ):
        for value in given:
            check_choice(name, value, known)
    for density in densities:
        check_fraction("densities", density)
    tokens = tokens or (QUICK_CPU_TOKENS if quick else CPU_TOKENS)
    repeats = (1 if quick else 3) if repeats is None else repeats
    for name, count in (("repeats", repeats), ("threads", threads), ("tokens", tokens)):
        check_count(name, count, 1)
    torch.set_num_threads(threads)
    measure = partial(
        _run,
        [
            (model, size)
            for model in models or (QUICK_MODELS if quick else tuple(RANDOM_MODELS))
            for size in resolution or tuple(RANDOM_MODELS[model])[: 1 if quick else None]
        ],
        methods or tuple(BENCH_METHODS),
        densities or (QUICK_DENSITIES if quick else DENSITIES),
        repeats,
        tokens,
        torch.device(device),
    )
    publish_report(measure, print_tables, name="e2e", output=output, json_output=json_output)


def _run(
    wanted: list[tuple[str, str]],
    methods: tuple[str, ...],
    densities: tuple[float, ...],
    repeats: int,
    tokens: int,
    device: torch.device,
) -> dict[str, Any]:
    """All models and sizes, one after the other; what finds no room is skipped, with the reason."""
    from fastdit_eval.e2e_bench import SCHEMA, bench_model

    console = Console(stderr=True, highlight=False)
    machine = {**describe_machine(device), "packages": describe_environment()["packages"]}
    runs: list[dict[str, Any]] = []
    for name, size in wanted:
        place: dict[str, Any] = {"model": name, "resolution": size}
        console.print(f"{name} {size} ...")
        try:
            reason, pieces = _prepare(name, size, tokens, device)
            if pieces is None:
                runs.append({**place, "skipped": reason})
                continue
            measured = bench_model(pieces["task"], methods, densities, repeats, console.print)
            runs.append({**place, "skipped": None, **pieces["notes"], **measured})
        except torch.OutOfMemoryError as error:
            runs.append({**place, "skipped": f"out of memory: {str(error).splitlines()[0]}"})
        pieces = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"schema": SCHEMA, "environment": machine, "repeats": repeats, "runs": runs}


def _prepare(name: str, size: str, tokens: int, device: torch.device) -> tuple[str | None, Pieces | None]:
    """A model at a size, ready to be measured; or why it cannot be."""
    from fastdit_pipelines.random_models import RANDOM_MODELS, shrink_shape, weight_bytes
    from fastdit_pipelines.real_shapes import KNOWN_SHAPES

    shape = KNOWN_SHAPES[name]
    if size not in RANDOM_MODELS[name]:
        return f"{name} was released for {', '.join(RANDOM_MODELS[name])}", None
    full_size = (*RANDOM_MODELS[name][size], shape.num_frames)
    notes: Pieces = {"shrunken": None, "pixels": full_size, "attention_layers_of_model": shape.layers}
    used, pixels, dtype = shape, full_size, torch.bfloat16
    if device.type == "cpu":
        used, pixels = shrink_shape(shape, full_size, tokens)
        dtype = torch.float32
        notes["shrunken"] = {
            name: [getattr(used, name), getattr(shape, name)] for name in ("layers", "heads", "ffn_dim", "text_length")
        } | {"pixels": [pixels, full_size], "tokens": [used.grid(*pixels).length, shape.grid(*full_size).length]}
    else:
        needed = weight_bytes(used, dtype)
        needed += CALL_TENSORS * used.grid(*pixels).length * used.heads * used.head_dim * dtype.itemsize
        free = torch.cuda.mem_get_info(device)[0]
        if needed > free:
            return f"needs about {needed / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} GB are free", None
    task, notes["dense_backend"], notes["weight_bytes"] = _build(used, pixels, dtype, device)
    return None, {"task": task, "notes": notes}


def _build(
    shape: ModelShape, pixels: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[ModelTask, dict[str, Any], int]:
    from fastdit.adapters import find_adapter
    from fastdit_eval.e2e_bench import ModelTask
    from fastdit_pipelines.backend_choice import set_fastest_backend
    from fastdit_pipelines.random_models import build_random, call_arguments

    model: Any = build_random(shape, device, dtype)
    arguments = call_arguments(shape, pixels, device, dtype)

    def call() -> object:
        return model(**arguments)

    grid = find_adapter(model).grid(model, (), arguments)
    with torch.no_grad():
        backend = set_fastest_backend(model, call)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    task = ModelTask(
        transformer=model,
        call=call,
        grid=grid,
        heads=shape.heads,
        head_dim=shape.head_dim,
        layers=shape.layers,
        flops=(shape.attention_flops(grid), shape.other_flops(grid)),
        num_inference_steps=shape.num_inference_steps,
        dtype=dtype,
        device=device,
        card=recognise_card(name),
    )
    return task, backend, sum(weight.nbytes for weight in model.parameters())


def print_tables(report: dict[str, Any]) -> None:
    """Print a table for each model and size."""
    console = Console(highlight=False)
    for run in report["runs"]:
        heading = f"{run['model']} {run['resolution']}"
        if run["skipped"] is not None:
            console.print(f"{heading}: skipped, {run['skipped']}")
            continue
        dense = run["dense"]
        label = "SHRUNKEN " if run["shrunken"] else ""
        console.print(_table(f"{label}{heading}: {run['tokens']:,} tokens, {run['layers']} layers", run))
        console.print(
            f"dense: {run['dense_backend']['name']}; alone {dense['operator_kernel']}; attention "
            f"{dense['attention_share']:.0%} of a step, {dense['tokens_per_second']:,.0f} tokens/s"
        )
    console.print(machine_line(report["environment"]))
    console.print("step, attn: times as fast as dense, attn alone with its selection. sel, move: shares of attn.")
    console.print("run: projected from the steps, 20 % of them and layer 0 dense. forecast: of attn, before it ran.")


def _table(title: str, run: dict[str, Any]) -> Table:
    table = Table("method", "density", "s/step", "step", "attn", "sel", "move", "MB", "run", "forecast", title=title)
    dense = run["dense"]
    blank = ["-"] * 4
    memory = f"{dense['peak_memory_bytes'] / 1e6:.0f}"
    table.add_row("dense", "1", f"{dense['seconds']['median']:.3g}", *blank, memory, "-", "-")
    for case in run["cases"]:
        table.add_row(
            case["method"],
            f"{case['density']:.3f}",
            f"{case['seconds']['median']:.3g}",
            f"{case['step_speedup']:.2f}",
            f"{case['attention_speedup']:.2f}",
            f"{case['operator']['select_share']:.0%}",
            f"{case['operator']['move_share']:.0%}",
            f"{case['peak_memory_bytes'] / 1e6:.0f}",
            f"{case['projection']['speedup']:.2f}",
            _expected(case["forecast"]),
        )
    return table


def _expected(forecast: dict[str, Any]) -> str:
    if forecast["attention_speedup"] is None:
        return "unknown"
    low, high = forecast["attention_speedup"]
    span = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}-{high:.2f}"
    return f"{span} slower" if forecast["warning"] else span
