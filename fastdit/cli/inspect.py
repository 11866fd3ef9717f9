"""`fastdit inspect`: what the attention heads of a model look at, as figures and pictures."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.attention_profile import jaccard
from fastdit.cli.call_options import DEFAULT_VIDEO, VideoOptions
from fastdit.cli.generate import video_settings
from fastdit.cli.output_folder import staged_output
from fastdit.environment import describe_environment
from fastdit.errors import ConfigError
from fastdit.probe import AttentionProbe, LayerView
from fastdit.validation import check_count

DEFAULT_PROMPT = "a red circle moving left on a dark background"


def inspect(
    *,
    output: Path,
    model: str = "tiny",
    prompt: str = DEFAULT_PROMPT,
    steps: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    rows: int = 64,
    block: int = 64,
    video: VideoOptions = DEFAULT_VIDEO,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Show what every self-attention head of a dense run looks at, measured on sampled queries.

    Writes attention.json, blocks.png (all heads) and layer_N.png (where the middle token looks). A head is stripe,
    local, temporal or global; `fastdit.attention_profile.classify` states the rule.

    Args:
        output: Folder for the results.
        model: "tiny", a Diffusers folder, or a Hub id.
        prompt: What to show.
        steps: Denoising steps to look at, from 0; default the first, the last and three between.
        rows: Sampled query tokens per layer.
        block: Keys per block.
        video: Arguments of the pipeline call.
        json_output: Print the figures as JSON on standard output.
    """
    check_count("rows", rows, 2)
    check_count("block", block, 1)
    from fastdit_pipelines.generation import generate, steps_of
    from fastdit_pipelines.loading import load_pipeline

    settings, _ = video_settings(model, prompt, video)
    with staged_output(output) as folder:
        pipe = load_pipeline(model)
        total = steps_of(pipe, settings) or 1
        chosen = sorted(set(steps or (round(part * (total - 1) / 4) for part in range(5))))
        if chosen[0] < 0 or chosen[-1] >= total:
            raise ConfigError(f"steps={chosen}: accepted are steps from 0 to {total - 1}")
        with AttentionProbe(pipe, chosen, rows=rows, block=block) as probe:
            generate(pipe, settings, "inspect")
        report: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "num_inference_steps": total,
            "steps": chosen,
            "rows": rows,
            "block": block,
            "heads": _heads(probe.views),
            "settings": settings.call_arguments(),
            "environment": describe_environment(),
        }
        (folder / "attention.json").write_text(json.dumps(report, indent=2) + "\n")
        _draw(probe.views, report["heads"], folder)
    if json_output:
        print(json.dumps(report))
    else:
        _print(report, output)


def _by_layer(views: Sequence[LayerView]) -> dict[tuple[int, int], list[LayerView]]:
    """The views of every `(transformer, layer)`, in order of steps."""
    layers: dict[tuple[int, int], list[LayerView]] = defaultdict(list)
    for view in sorted(views, key=lambda view: (view.transformer, view.layer, view.step)):
        layers[view.transformer, view.layer].append(view)
    return layers


def _heads(views: Sequence[LayerView]) -> list[dict[str, Any]]:
    """Figures of every head: means over the steps, and each step by itself."""
    heads = []
    for (transformer, layer), seen in _by_layer(views).items():
        stability = [jaccard(first.needed, second.needed) for first, second in pairwise(seen)]
        for head in range(len(seen[0].share)):
            each: list[dict[str, Any]] = [
                {
                    "step": view.step,
                    "branch": view.branch,
                    "keys_for_95": float(view.share[head]),
                    "entropy": float(view.entropy[head]),
                    "distance": dict(zip("thw", view.distance[head].tolist(), strict=True)),
                    "agreement": float(view.agreement[head]),
                    "kind": view.kinds()[head],
                }
                for view in seen
            ]
            kinds = Counter(item["kind"] for item in each)
            heads.append(
                {
                    "transformer": transformer,
                    "layer": layer,
                    "head": head,
                    "kind": kinds.most_common(1)[0][0],
                    "keys_for_95": sum(item["keys_for_95"] for item in each) / len(each),
                    "entropy": sum(item["entropy"] for item in each) / len(each),
                    "distance": {axis: sum(item["distance"][axis] for item in each) / len(each) for axis in "thw"},
                    "uniform_distance": dict(zip("thw", seen[0].uniform_distance.tolist(), strict=True)),
                    # Of the needed blocks, between consecutive steps of those looked at.
                    "stability": [float(values[head]) for values in stability],
                    "steps": each,
                }
            )
    return heads


def _draw(views: Sequence[LayerView], heads: list[dict[str, Any]], folder: Path) -> None:
    """Pictures of the middle one of the steps looked at."""
    from fastdit_eval.attention_sheet import draw_block_maps, draw_patch_map

    layers = _by_layer(views)
    labels: dict[tuple[int, int], list[str]] = defaultdict(list)
    for entry in heads:
        text = f"head {entry['head']}: {entry['kind']}\n95 % in {entry['keys_for_95']:.0%} of keys"
        labels[entry["transformer"], entry["layer"]].append(text)
    middle = {place: seen[len(seen) // 2] for place, seen in layers.items()}
    for transformer in sorted({place[0] for place in layers}):
        suffix = "" if transformer == 0 else f"_transformer_{transformer + 1}"
        places = [place for place in layers if place[0] == transformer]
        step = middle[places[0]].step
        for place in places:
            view = middle[place]
            title = f"{view.name}, step {step}: attention of the middle token (+), square-root scale"
            draw_patch_map(view.patch.numpy(), labels[place], title, folder / f"layer_{place[1]}{suffix}.png")
        draw_block_maps(
            [[blocks.numpy() for blocks in middle[place].blocks] for place in places],
            [labels[place] for place in places],
            f"step {step}: sampled queries (down) x blocks of keys (across), frame-major, square-root scale",
            folder / f"blocks{suffix}.png",
        )


def _print(report: dict[str, Any], output: Path) -> None:
    table = Table(
        "layer", "head", "kind", "keys for 95 %", "entropy", "distance t / h / w", "stability", title=report["model"]
    )
    for entry in report["heads"]:
        stability = entry["stability"]
        table.add_row(
            str(entry["layer"]),
            str(entry["head"]),
            entry["kind"],
            f"{entry['keys_for_95']:.3f}",
            f"{entry['entropy']:.2f}",
            " / ".join(f"{value:.1f}" for value in entry["distance"].values()),
            f"{sum(stability) / len(stability):.2f}" if stability else "-",
        )
    console = Console()
    console.print(table)
    kinds = Counter(entry["kind"] for entry in report["heads"])
    console.print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    console.print(f"written to {output}/", highlight=False)
