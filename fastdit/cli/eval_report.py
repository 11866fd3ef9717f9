"""`fastdit eval report`: a run folder as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(run: Path, *, json_output: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Write report.html, with videos inside, and report.md from what a run folder holds.

    Args:
        run: Folder with results of fastdit eval, or of fastdit generate --compare at any depth.
        json_output: Print the files written as JSON on standard output.
    """
    from fastdit_eval.run_report import write_report

    files = write_report(run)
    if json_output:
        print(json.dumps({"files": [str(path) for path in files]}))
    else:
        print("\n".join(str(path) for path in files))
