"""The synchronised player: dense, sparse and difference of a comparison, with one frame slider for all.

The three are drawn from one video that holds them side by side, so they cannot drift apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from fastdit_ui.serving import served_address

STATIC = Path(__file__).parent / "static"


def build_player() -> gr.HTML:
    """The component; its value is what `player_value` gives, or `None`."""
    return gr.HTML(
        None,
        html_template=(STATIC / "player.html").read_text(encoding="utf-8"),
        js_on_load=(STATIC / "player.js").read_text(encoding="utf-8"),
        label="Dense and sparse",
        elem_id="player",
    )


def player_value(folder: Path, report: dict[str, Any]) -> dict[str, Any] | None:
    """What the player shows of a run; `None` if the run has no joined video."""
    path = folder / "side_by_side.mp4"
    if not path.is_file() or path.is_symlink():
        return None
    settings = report["settings"]
    return {
        "src": served_address(path),
        "frames": len(report["psnr_by_frame"]),
        "fps": report["fps"],
        "width": settings["width"],
        "height": settings["height"],
        "top": report["largest_difference"],
        "psnr": [round(value, 2) for value in report["psnr_by_frame"]],
    }
