"""How right the judge is: `python -m fastdit_pipelines.tiny.validate_judge --num-clips 2000`.

Clips of known content at mixed sizes, clean and corrupted, optionally passed through the bundled autoencoder.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import cyclopts
import torch
from tqdm.auto import tqdm

from fastdit_pipelines.tiny.caption import asked_by
from fastdit_pipelines.tiny.corruptions import CORRUPTIONS, Size, applies
from fastdit_pipelines.tiny.judge import Judgement, judge_clip
from fastdit_pipelines.tiny.reading import read_clip
from fastdit_pipelines.tiny.world import SceneSampler, render

SIDES = (64, 96, 128)
FRAME_COUNTS = (9, 17, 33)
SIZES = tuple((frames, side, side) for side, frames in product(SIDES, FRAME_COUNTS))

app = cyclopts.App(help=__doc__, result_action="return_none")


@app.default
def main(*, num_clips: int = 2000, seed: int = 0, corrupted_share: float = 0.25, through_vae: bool = False) -> None:
    """Print the shares as JSON on standard output.

    Args:
        num_clips: Clean clips.
        seed: Seed of the scenes.
        corrupted_share: Share of the scenes that are also judged with each corruption.
        through_vae: Encode and decode every clip with the bundled autoencoder first.
    """
    report = validate(num_clips, seed, corrupted_share, autoencoder() if through_vae else None, progress=True)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def autoencoder() -> Any:
    """The bundled model's VAE."""
    from fastdit_pipelines.loading import load_pipeline

    return load_pipeline("tiny", dtype=torch.float32, device="cpu").vae


def through(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Encode and decode a clip `[F, 3, H, W]`."""
    with torch.no_grad():
        latents = vae.encode(frames.transpose(0, 1)[None] * 2 - 1).latent_dist.mean
        decoded: torch.Tensor = vae.decode(latents).sample[0]
    return (decoded.transpose(0, 1) / 2 + 0.5).clamp(0, 1)


def validate(
    num_clips: int,
    seed: int,
    corrupted_share: float,
    vae: Any = None,
    *,
    sizes: Sequence[Size] = SIZES,
    progress: bool = False,
) -> dict[str, Any]:
    """Judge clips whose content is known.

    Args:
        num_clips: Clean clips; every third has two objects, sizes take turns.
        seed: Seed of the scenes.
        corrupted_share: Share of the scenes that are also judged with each corruption.
        vae: What the clips pass through first, if anything.
        sizes: `(F, H, W)` of the clips, in turn.
        progress: Show a bar on standard error.

    Returns:
        `clean`: share of right verdicts by dimension. `noticed`: by corruption, the share of clips whose score in
        the corruption's dimension is lower than the clean clip's and whose verdict is "wrong". `seconds`: mean time
        of one reading by size.
    """
    sampler = SceneSampler(seed, two_object_share=0.34)
    right: dict[str, list[bool]] = defaultdict(list)
    noticed: dict[str, list[bool]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    numbers: Iterable[int] = range(num_clips)
    for number in tqdm(numbers, desc="clips", disable=not progress):
        scene, size = sampler.sample(), sizes[number % len(sizes)]
        asked = asked_by(scene)

        def judge(frames: torch.Tensor, asked: Any = asked, size: Any = size) -> Judgement:
            frames = frames if vae is None else through(vae, frames)
            start = time.perf_counter()
            result = judge_clip(read_clip(frames), asked)
            seconds["x".join(map(str, size))].append(time.perf_counter() - start)
            return result

        clean = judge(render(scene, *size))
        for name, verdict in clean.verdicts.items():
            right[name].append(verdict)
        if number % max(1, round(1 / max(corrupted_share, 1e-9))) or corrupted_share == 0:
            continue
        for name, (corrupt, dimension) in CORRUPTIONS.items():
            if applies(name, scene):
                bad = judge(corrupt(scene, size))
                lower = bad.scores[dimension] < clean.scores[dimension]
                noticed[name].append(lower and not bad.verdicts[dimension])
    return {
        "num_clips": num_clips,
        "seed": seed,
        "clean": {name: sum(values) / len(values) for name, values in right.items()},
        "noticed": {name: sum(values) / len(values) for name, values in noticed.items()},
        "seconds": {size: sum(values) / len(values) for size, values in seconds.items()},
    }


if __name__ == "__main__":
    app()
