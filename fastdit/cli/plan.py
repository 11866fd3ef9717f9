"""`fastdit plan`: look at plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from fastdit.cli.search import describe, print_plan
from fastdit.cli.sparse_options import load_plan

app = App(name="plan", help="Show a plan that fastdit search made.", result_action="return_value")


@app.command
def show(
    path: Path,
    *,
    picture: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Print what a plan promises and does; with --picture, also draw it: heads by layers for each phase.

    Args:
        path: File of the plan, or the name of a bundled one.
        picture: PNG to write.
        json_output: Print JSON instead of tables.
    """
    plan = load_plan(path)
    if picture is not None:
        from fastdit_eval.plan_sheet import draw_plan

        draw_plan(plan, picture)
    if json_output:
        print(json.dumps(describe(plan)))
    else:
        print_plan(plan, str(path))
