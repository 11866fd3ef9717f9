"""What a method would do for a model at a size: lengths, densities, FLOPs and memory, and the gain to expect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from fastdit.config import AttentionConfig, CachedConfig
from fastdit.errors import ConfigError
from fastdit.forecast import RunForecast, bit_bytes, forecast_run, list_bytes
from fastdit.gain_forecast import forecast_gain
from fastdit.grid import VideoGrid
from fastdit.plan_config import PlanConfig
from fastdit.search.cards import recognise_card
from fastdit.validation import check_count

if TYPE_CHECKING:
    from fastdit_pipelines.real_shapes import ModelShape

SELECTION_SOURCE = (
    "shares of dense attention's time measured on one CPU thread at 8,640 tokens (docs/selectors-bench.md), carried to "
    "this length as they grow on a CPU (docs/bench.md); GPUs have not been measured"
)


def length_report(
    shape: ModelShape, config: AttentionConfig, size: dict[str, int | None], card: str | None, bench: Path | None
) -> dict[str, Any]:
    """All figures as plain data.

    Args:
        shape: The model.
        config: Method and settings.
        size: `height`, `width`, `num_frames` and `num_inference_steps`; `None` is the model's own.
        card: Name of a card; `None` takes this machine's.
        bench: Timings of kernels to take the efficiency from.
    """
    asked = {name: getattr(shape, name) if value is None else value for name, value in size.items()}
    for name, value in asked.items():
        check_count(name, value, 1)
    settled, changes = shape.settle_size(asked["height"], asked["width"], asked["num_frames"])
    grid = shape.grid(*settled)
    _check_plan(config, shape)
    forecast = forecast_run(config, grid, shape.layers, shape.heads, asked["num_inference_steps"])
    attention, other = shape.attention_flops(grid), shape.other_flops(grid)
    gain = _gain(shape, config, grid, forecast, (attention, other), card, bench)
    return {
        "model": shape.name,
        "method": config.method,
        "height": settled[0],
        "width": settled[1],
        "num_frames": settled[2],
        "size_changes": changes,
        "note": shape.note,
        "latent_grid": [grid.frames, grid.height, grid.width],
        "video_tokens": grid.video_length,
        "tokens_per_frame": grid.height * grid.width,
        "text_tokens": grid.text_length,
        "cross_attention_text_tokens": shape.cross_text,
        "tokens": grid.length,
        **_tiles(config, grid),
        **_densities(forecast, shape),
        "attention_flops_dense": attention,
        "attention_flops_sparse_step": [
            attention * forecast.sparse_step.low,
            attention * forecast.sparse_step.high,
        ],
        "other_flops": other,
        "attention_share_of_flops": attention / (attention + other),
        "selection_share": gain["selection_share"],
        "selection_source": SELECTION_SOURCE,
        **_memory(config, grid, shape),
        "estimate": gain,
        "advice": _advice(forecast, gain),
    }


def _check_plan(config: AttentionConfig, shape: ModelShape) -> None:
    """Refuse a plan for other layers and heads; the whole identity is checked when a pipeline is enabled."""
    if not isinstance(config, PlanConfig) or config.plan is None:
        return
    found = [(one.num_layers, one.num_heads) for one in config.plan.transformers]
    expected = [(shape.layers, shape.heads)] * shape.transformers
    if found != expected:
        raise ConfigError(f"plan is for (layers, heads) {found}, {shape.name} has {expected}: make one for this model")


def _tiles(config: AttentionConfig, grid: VideoGrid) -> dict[str, Any]:
    q_tiles = sum(-(-tokens // config.q_tile) for tokens in grid.query_segments)
    kv_tiles = sum(-(-tokens // config.kv_tile) for tokens in grid.key_segments)
    return {
        "q_tile": config.q_tile,
        "kv_tile": config.kv_tile,
        "video_tokens_mod_q_tile": grid.video_length % config.q_tile,
        "video_tokens_mod_kv_tile": grid.video_length % config.kv_tile,
        "q_tiles": q_tiles,
        "kv_tiles": kv_tiles,
        "tile_pairs_per_head": q_tiles * kv_tiles,
    }


def _densities(forecast: RunForecast, shape: ModelShape) -> dict[str, Any]:
    return {
        "num_inference_steps": forecast.num_inference_steps,
        "dense_steps": forecast.dense_steps,
        "layers": shape.layers,
        "dense_layers": forecast.dense_layers,
        "dense_reason": forecast.dense_reason,
        "density_sparse_heads": [forecast.sparse_call.low, forecast.sparse_call.high],
        "density_sparse_step": [forecast.sparse_step.low, forecast.sparse_step.high],
        "density_run": [forecast.run.low, forecast.run.high],
        "density_source": forecast.note,
    }


def _memory(config: AttentionConfig, grid: VideoGrid, shape: ModelShape) -> dict[str, Any]:
    """Bytes of masks, for one video of one guidance branch."""
    # A plan has a method of its own for each head; its masks are of the usual tile sizes.
    lists, bits = list_bytes(config, grid, shape.heads), bit_bytes(config, grid, shape.heads)
    kept = shape.layers if isinstance(config, CachedConfig) else 0
    return {
        "mask_bytes_per_layer": lists,
        "kept_mask_bytes": {"lists": kept * lists, "bits": kept * bits},
        "token_pair_mask_bytes": grid.length**2,
    }


def _gain(
    shape: ModelShape,
    config: AttentionConfig,
    grid: VideoGrid,
    forecast: RunForecast,
    flops: tuple[float, float],
    card_name: str | None,
    bench: Path | None,
) -> dict[str, Any]:
    """The expected gain at the low and the high end of the density."""
    if card_name is None and bench is None:
        card_name = recognise_card(torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    gain = forecast_gain(config, grid, forecast, shape.head_dim, flops, card_name, bench)
    return {
        "is_estimate": True,
        "card": card_name,
        "source": gain.source,
        "kernel_efficiency": gain.efficiency,
        "selection_share": gain.selection,
        "moving_share": gain.moving,
        "attention_speedup": gain.attention and list(gain.attention),
        "step_speedup": gain.step and list(gain.step),
        "run_speedup": gain.run and list(gain.run),
    }


def _advice(forecast: RunForecast, gain: dict[str, Any]) -> str:
    if forecast.dense_reason is not None:
        return f"would not pay: {forecast.dense_reason}; the whole run stays dense"
    speedup = gain["run_speedup"] or gain["attention_speedup"]
    if speedup is None:
        return "the gain is unknown: this GPU is not in the table, give --card or --bench"
    low, high = speedup
    if high <= 1:
        return "would not pay: by the estimate the run is no faster than dense"
    if low <= 1:
        return "may not pay: by the estimate the gain depends on the density that the tensors ask for"
    return "should pay, by the estimate; measure it with fastdit generate --compare"


def print_lengths(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    console = Console(highlight=False)
    for change in report["size_changes"]:
        console.print(f"note: {change}, as the pipeline does")
    title = f"{report['model']}, {report['height']} x {report['width']} x {report['num_frames']}, {report['method']}"
    table = Table("", "", title=title, show_header=False)
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    if report["note"]:
        console.print(f"note: {report['note']}")
    console.print(f"density: {report['density_source']}")
    console.print(f"selection: {report['selection_source']}")
    if report["estimate"]["source"] is not None:
        console.print(f"gain: an estimate, nothing of it was measured by running this model; {_source(report)}")
    console.print(report["advice"])


def _source(report: dict[str, Any]) -> str:
    estimate = report["estimate"]
    card = f"{estimate['card']}: " if estimate["card"] else "efficiency from "
    return f"{card}{estimate['source']}; sparse kernel at {estimate['kernel_efficiency']:.2f} of dense per score"


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    frames, height, width = report["latent_grid"]
    kept = report["kept_mask_bytes"]
    estimate = report["estimate"]
    cross = report["cross_attention_text_tokens"]
    beside = f", {cross} in cross-attention" if cross else ""
    rest_q, rest_kv = report["video_tokens_mod_q_tile"], report["video_tokens_mod_kv_tile"]
    steps, dense_steps = report["num_inference_steps"], report["dense_steps"]
    flops = " to ".join(f"{value / 1e12:.2f}" for value in dict.fromkeys(report["attention_flops_sparse_step"]))
    rows = [
        ("grid t x h x w", f"{frames} x {height} x {width} = {report['video_tokens']:,} video tokens"),
        ("text tokens", f"{report['text_tokens']:,} in the sequence{beside}"),
        ("sequence", f"{report['tokens']:,} tokens, {report['tokens_per_frame']:,} a frame"),
        ("video tokens mod tile", f"{rest_q} of {report['q_tile']} (queries), {rest_kv} of {report['kv_tile']} (keys)"),
        ("tiles per head", f"{report['q_tiles']} x {report['kv_tiles']} = {report['tile_pairs_per_head']:,} pairs"),
        ("density, sparse heads", _span(report["density_sparse_heads"], ".3f")),
        ("density, sparse step", f"{_span(report['density_sparse_step'], '.3f')} ({_dense_layers(report)})"),
        ("density, whole run", f"{_span(report['density_run'], '.3f')} ({dense_steps} of {steps} steps dense)"),
        ("attention per call", f"{report['attention_flops_dense'] / 1e12:.2f} TFLOP dense, {flops} sparse, one video"),
        ("attention's share", f"{report['attention_share_of_flops']:.0%} of the transformer's FLOPs"),
        ("selection", f"{report['selection_share']:.1%} of dense attention's time"),
        ("moving tokens", f"{estimate['moving_share']:.1%} of dense attention's time"),
        ("mask of a layer", _bytes(report["mask_bytes_per_layer"]) + " at most, as lists"),
    ]
    if kept["lists"]:
        rows.append(("masks kept", f"{_bytes(kept['lists'])} as lists, {_bytes(kept['bits'])} as bits, one branch"))
    rows.append(("token-pair mask", _bytes(report["token_pair_mask_bytes"]) + ", which fastdit never makes"))
    for name in ("attention", "step", "run"):
        span = estimate[f"{name}_speedup"]
        text = "unknown: give --card" if span is None else f"{_span(span, '.2f')} x dense"
        rows.append((f"gain, {name} (estimate)", text))
    return rows


def _dense_layers(report: dict[str, Any]) -> str:
    return f"{report['dense_layers']} of {report['layers']} layers dense"


def _span(ends: list[float], form: str) -> str:
    """Both ends, or the one that they share when printed."""
    return " to ".join(dict.fromkeys(format(value, form) for value in ends))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
