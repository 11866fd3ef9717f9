"""`report.html` (one file that needs no other) and `report.md` of a run folder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from fastdit.errors import OutputError
from fastdit.whole_files import whole_file
from fastdit_eval.result_files import result_path
from fastdit_eval.run_contents import read_run
from fastdit_eval.run_plots import plot_density, plot_pareto, plot_stages

# Base64 adds a third; browsers bear a report of this size.
MAX_VIDEO_BYTES = 40_000_000


def write_report(run: Path) -> list[Path]:
    """Write the report of a run folder, each file in one step.

    Args:
        run: See `read_run`.

    Returns:
        The files written: `report.html`, `report.md` and the pictures that the latter shows.

    Raises:
        InvalidInputError: There is nothing to report.
        OutputError: The folder cannot be written.
    """
    contents = read_run(run)
    pictures = _pictures(contents, run)
    files: dict[str, bytes] = {f"report-{name}.png": data for name, data in pictures.items()}
    for name in ("report.html", "report.md"):
        files[name] = _render(name, contents, pictures, run).encode()
    for name, data in files.items():
        with whole_file(run / name) as partial:
            partial.write_bytes(data)
    return [run / name for name in files]


def _pictures(contents: dict[str, Any], run: Path) -> dict[str, bytes]:
    found = {}
    pareto = plot_pareto(contents["rows"])
    if pareto is not None:
        found["pareto"] = pareto
    tradeoffs = run / "tradeoffs.png"
    if tradeoffs.is_file():  # of a suite
        found["tradeoffs"] = tradeoffs.read_bytes()
    for name, speed in contents["speed"].items():
        if "stages" in speed:
            found[f"stages-{name}"] = plot_stages(speed["stages"], f"{name}: seconds by stage")
        if "attention_seconds" in speed:
            title = f"{name}: seconds of the self-attention layers, in a pair of its own"
            found[f"attention-{name}"] = plot_stages(speed["attention_seconds"], title)
        for number, cells in enumerate(speed.get("density_cells", [])):
            title = f"{name}: density of transformer {number}"
            found[f"density-{name}-{number}"] = plot_density([tuple(cell) for cell in cells], title)
    for name in contents["fidelity"]:
        sheet = result_path(run, "fidelity", name).with_suffix(".png")
        if sheet.is_file():
            found[f"worst-{name}"] = sheet.read_bytes()
    return found


def _render(template: str, contents: dict[str, Any], pictures: dict[str, bytes], run: Path) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise OutputError(f"jinja2 cannot be imported ({error}): pip install 'fastdit[eval]'") from error
    # Prompts and names are text of others: HTML is escaped.
    environment = Environment(
        loader=PackageLoader("fastdit_eval", "templates"),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2)
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    html = template.endswith(".html")
    text: str = environment.get_template(template).render(
        title=run.resolve().name,
        pictures={name: _data_uri(data, "image/png") for name, data in pictures.items()} if html else list(pictures),
        clips=_embedded(contents["videos"]) if html else [],
        **contents,
    )
    return text


def _embedded(videos: list[tuple[str, Path, Path]]) -> list[dict[str, Any]]:
    """Videos as data URIs, in their order, as long as there is room; the others are named."""
    room, found = MAX_VIDEO_BYTES, []
    for title, *pair in videos:
        size = sum(path.stat().st_size for path in pair)
        fits, room = size <= room, room - size if size <= room else room
        uris = [_data_uri(path.read_bytes(), "video/mp4") if fits else None for path in pair]
        found.append({"title": title, "dense": uris[0], "sparse": uris[1], "paths": [str(path) for path in pair]})
    return found


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
