"""Prompts and results in VBench's language, so that its tools can read them.

A suite is a list of `{"prompt_en", "dimension", "auxiliary_info"}`; results are
`{dimension: [score, [{"video_path", "video_results"}, ...]]}`; a video is called `<prompt>-<number>.mp4`. The names of
the dimensions are the judge's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastdit.validation import check_count, check_fraction
from fastdit_pipelines.tiny.caption import AskedScene, parse_caption
from fastdit_pipelines.tiny.judge import DIMENSIONS
from fastdit_pipelines.tiny.world import SceneSampler


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One video to be made and judged.

    Args:
        prompt: What to show.
        number: How many samples of this prompt come before it.
        seed: Seed of the initial noise.
        two_objects: Whether the prompt asks for two objects.
    """

    prompt: str
    number: int
    seed: int
    two_objects: bool

    @property
    def name(self) -> str:
        """File name without ending: `<prompt>-<number>`."""
        return f"{self.prompt}-{self.number}"


def draw_samples(num_prompts: int, seed: int, two_object_share: float = 0.0) -> list[Sample]:
    """Prompts of combinations kept out of training; sample `i` of its kind starts from noise seed `i`.

    Args:
        num_prompts: Prompts in all.
        seed: Seed of the prompts. A longer list begins with the shorter one of the same seed, kind by kind.
        two_object_share: Share of prompts with two objects; they follow the others.
    """
    check_count("num_prompts", num_prompts, 1)
    check_fraction("two_objects", two_object_share)
    pairs = round(num_prompts * two_object_share)
    samples = []
    for count, two_objects in ((num_prompts - pairs, False), (pairs, True)):
        sampler = SceneSampler(seed, held_out=True, two_object_share=float(two_objects))
        seen: Counter[str] = Counter()
        for index in range(count):
            prompt = sampler.sample().caption
            samples.append(Sample(prompt=prompt, number=seen[prompt], seed=index, two_objects=two_objects))
            seen[prompt] += 1
    return samples


def build_suite(prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The prompt suite: one entry for every distinct prompt, in order of first appearance."""
    return [_entry(prompt, parse_caption(prompt)) for prompt in dict.fromkeys(prompts)]


def _entry(prompt: str, asked: AskedScene) -> dict[str, Any]:
    related = asked.relation not in (None, "and")
    dimensions = [name for name in DIMENSIONS if name != "relation" or related]
    nouns = [f"{item.color} {item.shape}" for item in asked.objects]
    words = {
        "object": nouns,
        "color": [item.color for item in asked.objects],
        "shape": [item.shape for item in asked.objects],
        "direction": [item.direction for item in asked.objects],
        "speed": [item.speed or "normally" for item in asked.objects],
        "background": [asked.background],
    }
    information: dict[str, Any] = {name: {name: " and ".join(values)} for name, values in words.items()}
    information["count"] = {"count": len(asked.objects)}
    if related:
        information["relation"] = {
            "relation": {"object_a": nouns[0], "object_b": nouns[1], "relationship": asked.relation}
        }
    return {"prompt_en": prompt, "dimension": dimensions, "auxiliary_info": information}


def prompt_of_file(stem: str) -> str:
    """Prompt of a video called `<prompt>-<number>` or `<prompt>`."""
    return re.sub(r"-\d+$", "", stem)


def shares(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of "right" verdicts by dimension, over the clips that have the dimension.

    Args:
        results: Each with `verdicts` and `scores` by dimension.
    """
    names = [name for name in (*DIMENSIONS, "all") if any(name in result["verdicts"] for result in results)]
    table = {}
    for name in names:
        verdicts = [bool(result["verdicts"][name]) for result in results if name in result["verdicts"]]
        table[name] = sum(verdicts) / len(verdicts)
    return table


def vbench_results(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results by dimension as VBench writes them; `video_results` is the verdict, `video_score` the judge's score.

    Args:
        results: Each with `video_path`, `verdicts` and `scores`.
    """
    report: dict[str, Any] = {}
    for name, share in shares(results).items():
        videos = []
        for result in results:
            if name in result["verdicts"]:
                video = {"video_path": result["video_path"], "video_results": bool(result["verdicts"][name])}
                if name in result["scores"]:
                    video["video_score"] = result["scores"][name]
                videos.append(video)
        report[name] = [share, videos]
    return report
