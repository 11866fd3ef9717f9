"""`fastdit doctor`: what works on this machine, and what sparse attention would do for a model at a size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.cli.doctor_lengths import length_report, print_lengths
from fastdit.cli.sparse_options import DEFAULT_SPARSE, SparseOptions, check_method
from fastdit.config import AdaptiveConfig
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError

# Shape of the query that implementations are asked about: a head of the commonest width.
HEAD_DIM = 128


def doctor(
    *,
    model: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    method: str | None = None,
    card: str | None = None,
    bench: Path | None = None,
    sparse: SparseOptions = DEFAULT_SPARSE,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Say what works on this machine; with --model, what a method would gain for a model at a size.

    No model is run or fetched. Lengths, densities and FLOPs are exact arithmetic; the gain is an estimate from
    published rates, or from a bench of yours.

    Args:
        model: wan-1.3b, wan-14b, wan22-a14b, wan22-5b, cogvideox-2b, cogvideox-5b, cogvideox1.5-5b, hunyuan-video,
            hunyuan-video-1.5, ltx-2b, ltx-13b, mochi, tiny, a Diffusers folder, or a Hub id.
        height: Pixels; default the model's.
        width: Pixels; default the model's.
        num_frames: Frames; default the model's.
        num_inference_steps: Denoising steps; default the model's.
        method: "adaptive" (the default), "pyramid", "static" or "cached".
        card: h100, h200, a100, 4090 or cpu; default this machine's.
        bench: JSON of fastdit bench kernels, for the attention of your own machine instead of published rates.
        sparse: Settings of the method.
        json_output: Print JSON instead of tables.
    """
    size = {"height": height, "width": width, "num_frames": num_frames, "num_inference_steps": num_inference_steps}
    if model is None:
        given: dict[str, object] = {**size, "method": method, "card": card, "bench": bench}
        given |= {} if sparse == DEFAULT_SPARSE else {"sparse options": sparse}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}={value!r} without a model: give --model too")
        report: dict[str, Any] = machine_report()
    else:
        from fastdit_pipelines.bundled_models import method_defaults
        from fastdit_pipelines.shape_reading import find_shape

        method = sparse.choose_method(method, AdaptiveConfig.method)
        check_method(method, sparse)
        config = sparse.build(method, method_defaults(model, method))
        report = length_report(find_shape(model), config, size, card, bench)
    if json_output:
        print(json.dumps(report))
    elif model is None:
        _print_machine(report)
    else:
        print_lengths(report)


def machine_report() -> dict[str, Any]:
    """Accelerator, versions, kernels and dense backends of this machine, as plain data."""
    from fastdit_kernels import available_implementations
    from fastdit_kernels.backends import triton_unavailable_reason
    from fastdit_kernels.dispatch import resolve
    from fastdit_kernels.implementations.triton_configurations import architecture_of
    from fastdit_pipelines.dense_backend import dense_backends

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    query = torch.empty(1, 1, 128, HEAD_DIM, dtype=torch.bfloat16 if gpu else torch.float32, device=device)
    return {
        "environment": describe_environment(),
        "architecture": architecture_of(device) if gpu else None,
        "triton": triton_unavailable_reason(query),
        "implementations": available_implementations(query),
        "auto": resolve("auto", query),
        "dense_backends": dense_backends(),
    }


def _print_machine(report: dict[str, Any]) -> None:
    environment = report["environment"]
    console = Console(highlight=False)
    gpu = environment["accelerator"]
    architecture = report["architecture"] or "no kernel configuration for it"
    console.print(f"accelerator: {'none' if gpu is None else f'{gpu} ({architecture})'}")
    console.print(f"processor: {environment['processor']}, {environment['num_cpus']} cores")
    packages = {"python": environment["python"], **environment["packages"]}
    console.print(", ".join(f"{name} {found or 'is missing'}" for name, found in packages.items()))
    console.print(f"Triton kernels: {report['triton'] or 'run here'}")
    table = Table("kernel", "here", title=f"sparse kernels; auto takes {report['auto']}")
    for name, reason in report["implementations"].items():
        table.add_row(name, reason or "usable")
    console.print(table)
    usable = [name for name, reason in report["dense_backends"].items() if reason is None]
    console.print(f"dense backends of Diffusers, usable: {', '.join(usable)}")
    others = [name for name, reason in report["dense_backends"].items() if reason is not None]
    console.print(f"not usable here (--json says why): {', '.join(others) or 'none'}")
