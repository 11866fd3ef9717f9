"""The plan of a suite: every clip with its prompt, its seed and its exact file name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdit.errors import ConfigError
from fastdit.validation import check_choice, check_count
from fastdit.whole_files import write_json
from fastdit_eval.vbench.files import RunFolder, read_json, sha256_of
from fastdit_eval.vbench.naming import BENCHMARKS, STANDARD_SAMPLES, clip_name, num_samples

SCHEMA = "vbench_manifest/1"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video to be made.

    Args:
        file: Name in the folder of videos.
        prompt: Position of its prompt in the manifest.
        index: Number of the sample, from 0.
        seed: Seed of its initial noise.
    """

    file: str
    prompt: int
    index: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One distinct prompt.

    Args:
        prompt_en: The suite's text, which names the files.
        prompt_used: The text the model gets; longer where a model wants long prompts.
        dimensions: Dimensions it serves.
        samples: Clips of it.
    """

    prompt_en: str
    prompt_used: str
    dimensions: tuple[str, ...]
    samples: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is to be generated.

    Args:
        benchmark: One of `BENCHMARKS`.
        suite_sha256: Of the suite's file.
        seed: Seed of sample 0; sample `i` has `seed + i`.
        dimensions: Dimensions that are planned.
        prompts: Distinct prompts, in the suite's order.
        clips: All clips.
    """

    benchmark: str
    suite_sha256: str
    seed: int
    dimensions: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    clips: tuple[Clip, ...]

    def expected(self, dimension: str) -> tuple[str, ...]:
        """Files that VBench reads for a dimension: 5 of each prompt, also of the 25 that flickering is chosen from."""
        if self.benchmark == "vbench-2.0":
            return tuple(clip.file for clip in self.clips if dimension in self.prompts[clip.prompt].dimensions)
        return tuple(
            clip.file
            for clip in self.clips
            if dimension in self.prompts[clip.prompt].dimensions and clip.index < STANDARD_SAMPLES
        )

    def num_prompts(self, dimension: str) -> int:
        """Prompts of a dimension."""
        return sum(dimension in prompt.dimensions for prompt in self.prompts)

    def save(self, path: Path) -> None:
        """Write as JSON, in one step."""
        write_json(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            ConfigError: The file is missing, damaged or of another schema.
        """
        data = read_json(path, "manifest")
        try:
            if data.pop("schema") != SCHEMA:
                raise ValueError("unknown schema")
            data["prompts"] = tuple(
                Prompt(**{**item, "dimensions": tuple(item["dimensions"])}) for item in data["prompts"]
            )
            data["clips"] = tuple(Clip(**item) for item in data["clips"])
            data["dimensions"] = tuple(data["dimensions"])
            return cls(**data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"manifest {str(path)!r} is no {SCHEMA!r} ({error}): make it with 'fastdit eval vbench plan'"
            ) from error


def read_suite(path: Path) -> list[dict[str, Any]]:
    """Entries of a prompt suite in VBench's format.

    Raises:
        ConfigError: It is not a list of `{"prompt_en": text, "dimension": [names]}`.
    """
    entries = read_json(path, "suite")
    good = isinstance(entries, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("prompt_en"), str)
        and bool(entry["prompt_en"].strip())
        and isinstance(entry.get("dimension"), list)
        and all(isinstance(name, str) for name in entry["dimension"])
        for entry in entries
    )
    if not good or not entries:
        raise ConfigError(
            f"suite {str(path)!r}: accepted is a list of "
            '{"prompt_en": text, "dimension": [names]}, e.g. VBench_full_info.json of the vbench package'
        )
    return list(entries)


def build_manifest(
    suite: Path,
    *,
    benchmark: str = "vbench",
    dimensions: Sequence[str] = (),
    samples: int | None = None,
    seed: int = 0,
    prompts_used: Path | None = None,
    limit: int | None = None,
) -> Manifest:
    """Plan the clips of a suite.

    Args:
        suite: VBench's full-info JSON, or another suite in its format.
        benchmark: `"vbench"`, `"vbench-long"` or `"vbench-2.0"`.
        dimensions: Only prompts of these; default all.
        samples: Clips of every prompt instead of the official number: for short checks, never for a score.
        seed: Seed of sample 0; sample `i` has `seed + i`.
        prompts_used: Text file with one longer prompt for every entry of the suite, line by line.
        limit: Only the first prompts: for short checks, never for a score.

    Raises:
        ConfigError: A name is impossible or taken twice, or an argument is out of range.
    """
    check_choice("benchmark", benchmark, BENCHMARKS)
    check_count("seed", seed)
    for name, value in (("samples", samples), ("limit", limit)):
        if value is not None:
            check_count(name, value, 1)
    entries = read_suite(suite)
    known = {name for entry in entries for name in entry["dimension"]}
    for name in dimensions:
        check_choice("dimension", name, sorted(known))
    chosen = set(dimensions) or known
    prompts = _prompts(entries, _lines(prompts_used, len(entries)), chosen, benchmark, samples)[:limit]
    clips = tuple(
        Clip(file=clip_name(prompt.prompt_en, index, benchmark), prompt=number, index=index, seed=seed + index)
        for number, prompt in enumerate(prompts)
        for index in range(prompt.samples)
    )
    _check_distinct(clips, prompts)
    return Manifest(
        benchmark=benchmark,
        suite_sha256=sha256_of(suite),
        seed=seed,
        dimensions=tuple(sorted(chosen)),
        prompts=prompts,
        clips=clips,
    )


def _lines(path: Path | None, count: int) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts_used {str(path)!r} cannot be read: {error}") from error
    if len(lines) != count or not all(line.strip() for line in lines):
        raise ConfigError(
            f"prompts_used {str(path)!r} has {len(lines)} lines: accepted is one text for each of {count}"
        )
    return lines


def _prompts(
    entries: Sequence[dict[str, Any]],
    used: Sequence[str] | None,
    chosen: set[str],
    benchmark: str,
    samples: int | None,
) -> tuple[Prompt, ...]:
    """Distinct prompts; entries with the same text are one prompt that serves the dimensions of both."""
    merged: dict[str, tuple[str, dict[str, None]]] = {}
    for number, entry in enumerate(entries):
        names = [name for name in entry["dimension"] if name in chosen]
        if names:
            text = entry["prompt_en"]
            held = merged.setdefault(text, (text if used is None else used[number], {}))
            held[1].update(dict.fromkeys(names))
    return tuple(
        Prompt(
            prompt_en=text,
            prompt_used=used_text,
            dimensions=tuple(names),
            samples=num_samples(names, benchmark) if samples is None else samples,
        )
        for text, (used_text, names) in merged.items()
    )


def _check_distinct(clips: Sequence[Clip], prompts: Sequence[Prompt]) -> None:
    seen: dict[str, Clip] = {}
    for clip in clips:
        # Not by lower case: VBench's own suite has two prompts that differ in a capital only.
        other = seen.setdefault(clip.file, clip)
        if other is not clip:
            raise ConfigError(
                f"prompts {prompts[other.prompt].prompt_en!r} and {prompts[clip.prompt].prompt_en!r} "
                f"would both be called {clip.file!r}: change one of them"
            )


def write_plan(run: RunFolder, suite: Path, manifest: Manifest) -> None:
    """Write the manifest and a copy of the suite; a folder that has them must have the same.

    Raises:
        ConfigError: The folder holds another plan.
    """
    if run.manifest.exists() and Manifest.load(run.manifest) != manifest:
        raise ConfigError(f"output {str(run.root)!r} holds another plan: give another folder")
    run.videos.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(suite, run.suite)
    manifest.save(run.manifest)


def is_official(manifest: Manifest) -> bool:
    """Whether every prompt has the official number of samples."""
    return all(prompt.samples == num_samples(prompt.dimensions, manifest.benchmark) for prompt in manifest.prompts)
