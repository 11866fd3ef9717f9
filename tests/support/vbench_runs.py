"""Small VBench runs: a suite with one prompt a dimension, clips, official results, and a stand-in for the package."""

import json
import shutil
import stat
import sys

import imageio_ffmpeg
import numpy as np

from fastdit.whole_files import write_json
from fastdit_eval.vbench.dimensions import DIMENSIONS
from fastdit_eval.vbench.files import RunFolder, sha256_of
from fastdit_eval.vbench.generation import generate_clips
from fastdit_eval.vbench.manifest import build_manifest, write_plan

GOLDEN = {
    "subject_consistency": 0.965,
    "background_consistency": 0.968,
    "temporal_flickering": 0.993,
    "motion_smoothness": 0.985,
    "dynamic_degree": 0.65,
    "aesthetic_quality": 0.61,
    "imaging_quality": 0.66,
    "object_class": 0.85,
    "multiple_objects": 0.62,
    "human_action": 0.95,
    "color": 0.86,
    "spatial_relationship": 0.70,
    "scene": 0.50,
    "appearance_style": 0.24,
    "temporal_style": 0.25,
    "overall_consistency": 0.27,
}
# Stands in for the official package: it has its layout, its warning for missing clips and its NaN for stray files.
PACKAGE = """
import json, os

class VBench:
    def __init__(self, device, suite, output):
        assert not isinstance(device, str)
        self.suite, self.output = suite, output

    def evaluate(self, videos_path, name, dimension_list, mode, local, **kwargs):
        there = os.listdir(videos_path)
        entries = [e for e in json.load(open(self.suite)) if dimension_list[0] in e["dimension"]]
        wanted = [e["prompt_en"] + "-%d.mp4" % i for e in entries for i in range(5)]
        files = [f for f in wanted if f in there] if mode == "vbench_standard" else there
        rows = [{"video_path": os.path.join(videos_path, f), "video_results": 0.5} for f in files]
        open(os.path.join(os.path.dirname(__file__), "calls.txt"), "a").write(dimension_list[0] + "\\n")
        score = 0.5 if rows and not os.path.exists(__file__ + ".nan") else float("nan")
        for kind, data in (("full_info", entries), ("eval_results", {dimension_list[0]: [score, rows]})):
            json.dump(data, open(os.path.join(self.output, name + "_" + kind + ".json"), "w"))
"""


def write_suite(path, dimensions=tuple(DIMENSIONS)):
    """A suite file with one prompt for each dimension."""
    path.write_text(json.dumps([{"prompt_en": f"a cat, {name}", "dimension": [name]} for name in dimensions]))
    return path


def write_clip(path, frames=3, seed=0, fps=8):
    """A small mp4 of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), (32, 32), fps=fps, macro_block_size=2)
    writer.send(None)
    for frame in np.random.default_rng(seed).integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8):
        writer.send(frame.tobytes())
    writer.close()


def planned_run(folder, dimensions=tuple(DIMENSIONS), **options):
    """A run folder with a plan."""
    folder.mkdir(parents=True, exist_ok=True)
    suite = write_suite(folder.with_name(f"{folder.name}_suite.json"), dimensions)
    run, manifest = RunFolder(folder), build_manifest(suite, **options)
    write_plan(run, suite, manifest)
    return run, manifest


def copying_maker(source, fps=8):
    """Makes every clip by copying one."""

    def make(prompt, seed, path):
        shutil.copyfile(source, path)
        return {"num_frames": 3, "fps": fps}

    return make


def fill(run, manifest, source, fps=8):
    """All clips of the plan."""
    write_clip(source)
    generate_clips(run, manifest, list(enumerate(manifest.clips)), copying_maker(source, fps))


def official_results(run, manifest, scores=GOLDEN, edition="vbench"):
    """Result files and meta data as a whole, official run leaves them."""
    entries = {}
    run.results.mkdir(parents=True, exist_ok=True)
    for name, score in scores.items():
        path = run.results / f"{name}_eval_results.json"
        files = manifest.expected(name)
        rows = [{"video_path": f"{run.videos}/{file}", "video_results": score} for file in files]
        path.write_text(json.dumps({name: [score, rows]}))
        entries[name] = {
            "mode": "vbench_standard",
            "coverage": [manifest.num_prompts(name), len(files), len(files)],
            "static_filter": {"num_prompts": 1, "num_clips": 5, "short": {}} if name == "temporal_flickering" else None,
            "weights": "official" if DIMENSIONS[name].networks else "none",
            "result_sha256": sha256_of(path),
        }
    write_json(run.meta, {"schema": "vbench_meta/1", "leaderboard_edition": edition, "dimensions": entries})


def stand_in_interpreter(folder, broken=()):
    """An interpreter whose `vbench` is `PACKAGE`; returns it and the package's folder."""
    package = folder / "site" / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    for name in DIMENSIONS:
        (package / f"{name}.py").write_text("import no_such_module_at_all\n" if name in broken else "")
    (package / "VBench_full_info.json").write_text("[]")
    site = package.parent
    (site / "torch.py").write_text(
        "class device:\n    def __init__(self, name): pass\n"
        "class cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python, package
