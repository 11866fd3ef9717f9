"""The zip file that VBench's leaderboard takes: official result files, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fastdit.whole_files import whole_file
from fastdit_eval.vbench.files import RunFolder, VBenchError
from fastdit_eval.vbench.manifest import Manifest
from fastdit_eval.vbench.naming import LONG_RULE
from fastdit_eval.vbench.score import score_run

FIRST_DATE = (1980, 1, 1, 0, 0, 0)


def pack_results(run: RunFolder, manifest: Manifest, target: Path) -> dict[str, float]:
    """Write the submission: all 16 `*_eval_results.json` at the top of a zip file, byte by byte as the package wrote.

    Args:
        run: The run's folder.
        manifest: Its plan.
        target: Zip file; the same results give the same bytes.

    Returns:
        The totals of what was packed.

    Raises:
        VBenchError: The results have no total (see `score_run`), or belong to VBench-Long.
    """
    report = score_run(run, manifest)
    if report["leaderboard_edition"] != "vbench":
        raise VBenchError(f"these clips are for VBench-Long, not for VBench's leaderboard. {LONG_RULE}")
    with (
        whole_file(target, make_folder=True) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for path in sorted(run.results.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name, FIRST_DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return {name: report[name] for name in ("quality", "semantic", "total")}
