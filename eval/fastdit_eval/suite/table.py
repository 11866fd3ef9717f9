"""The comparison as a table in Markdown, with what it was measured on."""

from __future__ import annotations

from typing import Any

from fastdit_eval.suite.clip_store import DENSE

JUDGED = ("object", "color", "shape", "direction", "all")


def write_table(report: dict[str, Any]) -> str:
    """The table of `suite.json` in Markdown.

    Args:
        report: From `compare_rows`.
    """
    columns = ("method", "density over the run", "speed-up", "PSNR, dB", "SSIM", "flicker", "motion, px", *JUDGED)
    lines = [_line(columns), "|" + "---|" * len(columns)]
    for row, item in report["rows"].items():
        lines.append(_line([_name(row, item, report["floor"]), *_figures(row, item), *_judged(item["judge"])]))
    return "\n".join([*lines, "", *_notes(report)]) + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _name(row: str, item: dict[str, Any], floor: str | None) -> str:
    if row == floor:
        return f"{row} (noise floor)"
    return f"{row} *" if item.get("pareto") else row


def _figures(row: str, item: dict[str, Any]) -> list[str]:
    if row == DENSE:
        return ["1.000", "1.00x", "-", "-", "-", "-"]
    quality = item["quality"]
    return [
        f"{item['density']:.3f}",
        "-" if item["speedup"] is None else f"{item['speedup']:.2f}x",
        _mean(item, "psnr_rgb", 1),
        _mean(item, "ssim", 3),
        _difference(quality, "temporal_flickering", 4),
        _difference(quality, "flow_top5_dis", 2),
    ]


def _mean(item: dict[str, Any], metric: str, digits: int) -> str:
    """Mean and half the width of its 95 % interval."""
    found = item["fidelity"].get(metric)
    if found is None:
        return "-"
    text = f"{found['mean']:.{digits}f}"
    return text if found["ci95"] is None else f"{text} ± {(found['ci95'][1] - found['ci95'][0]) / 2:.{digits}f}"


def _difference(quality: dict[str, Any], name: str, digits: int) -> str:
    return f"{quality[name]['delta']:+.{digits}f}" if name in quality else "-"


def _judged(shares: dict[str, float]) -> list[str]:
    return [f"{shares[name]:.2f}" if name in shares else "-" for name in JUDGED]


def _notes(report: dict[str, Any]) -> list[str]:
    call, environment = report["call"], report["environment"]
    size = " x ".join(str(call[name]) for name in ("num_frames", "height", "width") if name in call)
    timed = [item for item in report["rows"].values() if "num_timed" in item]
    machine = environment["accelerator"] or f"{environment['num_cpus']} CPU cores ({environment['processor']})"
    lines = [
        f"{report['num_clips']} prompts of combinations never seen in training (seed {report['seed']}), model "
        f"{report['model']}, {size or 'default size'}, {call.get('num_inference_steps', 'default')} steps. Dense: the "
        "stock pipeline, torch SDPA.",
        "Density: scores computed / scores of dense attention, over the whole run, dense steps and layers included. "
        f"Speed-up: end to end on {machine}, {environment['torch_threads']} threads, torch "
        f"{environment['packages']['torch']}; median over the prompts of dense seconds / seconds, both made by one "
        f"process ({min((item['num_timed'] for item in timed), default=0)} pairs or more"
        f"{_shared(max((item['num_processes'] for item in timed), default=1))}).",
        f"PSNR and SSIM (convention {report['convention']}, lossless 8-bit frames): mean over the prompts ± half the "
        "width of its bootstrap 95 % interval. Flicker (VBench's formula, unfiltered) and motion (fastest 5 % by DIS "
        "flow, pixels): differences from dense; no VBench scores. The rest: shares of videos that the bundled "
        "world's judge finds right.",
        r"\* no other method is both faster and closer to dense.",
    ]
    lacking = {name: text for item in timed for name, text in item["unavailable"].items()}
    lines += [f"{name}: unavailable, {text}." for name, text in lacking.items()]
    command = report.get("command")
    if command:
        lines.append(f"Made by `{command}`.")
    return [line for text in lines for line in (text, "")][:-1]


def _shared(num_processes: int) -> str:
    return f", {num_processes} processes at once" if num_processes > 1 else ""
