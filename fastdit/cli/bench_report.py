"""What the benches share: progress on standard error, the report in a folder and on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from fastdit.cli.output_folder import staged_output
from fastdit.whole_files import write_json

Report = dict[str, Any]


def publish_report(
    measure: Callable[[], Report],
    print_tables: Callable[[Report], None],
    *,
    name: str,
    output: Path | None,
    json_output: bool,
    draw: Callable[[Report, Path], object] | None = None,
) -> None:
    """Measure; write `name`.json and, where there is a picture, `name`.png; print the report.

    Args:
        measure: Gives the report. It runs only if the folder can be written.
        print_tables: Prints the report for people.
        name: Of the files.
        output: Folder; `None` to write nothing.
        json_output: Print the report as JSON instead.
        draw: Draws the report into a PNG file.

    Raises:
        OutputError: The folder cannot be written.
    """
    if output is None:
        report = measure()
    else:
        with staged_output(output) as folder:
            report = measure()
            write_json(folder / f"{name}.json", report)
            if draw is not None:
                draw(report, folder / f"{name}.png")
    if json_output:
        print(json.dumps(report))
    else:
        print_tables(report)


@contextmanager
def show_progress(name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that shows how many of how many cases are done, and which is in work."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int, case: str) -> None:
            bar.update(task, completed=done, total=total, description=case)

        yield show
