"""The form of a search, and the endpoint that starts one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from fastdit_ui.inside_answers import whole
from fastdit_ui.messages import messages
from fastdit_ui.search_store import AIMS, SearchRequest
from fastdit_ui.search_worker import SearchWorker
from fastdit_ui.sizes import settle
from fastdit_ui.state import AppState

PROMPTS = (
    "a red circle moving left on a dark background",
    "a blue square moving slowly right on a light background",
    "a green triangle moving up on a gray background",
)
AIM_LABELS = (
    ("PSNR of at least (dB)", "min_psnr"),
    ("SSIM of at least", "min_ssim"),
    ("Density of at most", "density"),
    ("Attention faster by", "speedup"),
)
AIM_SHORT = {"min_psnr": "PSNR >=", "min_ssim": "SSIM >=", "density": "density <=", "speedup": "attention faster by"}
AIM_VALUES = {"min_psnr": 30.0, "min_ssim": 0.95, "density": 0.3, "speedup": 1.5}
assert {name for _, name in AIM_LABELS} == set(AIMS), "every aim has a label"


def build_search_form(state: AppState) -> dict[str, Any]:
    """The form of a search, in the order of the API."""
    models = list(state.settings.models)
    defaults = state.engine.call_defaults(models[0])
    frames, fps = defaults.get("num_frames", 81), defaults.get("fps", 16)
    form: dict[str, Any] = {
        "prompts": gr.Textbox("\n".join(PROMPTS), label="Prompts, one a line", lines=5, elem_id="search-prompts"),
        "model": gr.Dropdown(models, value=models[0], label="Model"),
        "aim": gr.Radio(list(AIM_LABELS), value="min_psnr", label="Promise or budget"),
        "value": gr.Number(AIM_VALUES["min_psnr"], label="Value", elem_id="search-value"),
        "steps": gr.Slider(
            1,
            100,
            value=int(defaults.get("num_inference_steps", 30)),
            step=1,
            label="Denoising steps",
            elem_id="search-steps",
        ),
    }
    with gr.Accordion("Size and rounds", open=False):
        form |= {
            "width": gr.Number(int(defaults.get("width", 832)), label="Width, pixels", precision=0),
            "height": gr.Number(int(defaults.get("height", 480)), label="Height, pixels", precision=0),
            "duration": gr.Number(round(frames / fps, 2), label="Duration, seconds"),
            "num_measured": gr.Number(
                1, label="Prompts to measure on", info="the others verify the promise", precision=0, minimum=1
            ),
            "max_rounds": gr.Number(10, label="Verification rounds at most", precision=0, minimum=1),
            "seed": gr.Number(0, label="First seed", precision=0, minimum=0),
        }
    form["aim"].input(lambda aim: AIM_VALUES[aim], form["aim"], form["value"], api_visibility="private")
    return form


def search_starter(state: AppState, worker: SearchWorker) -> Callable[..., str]:
    """What starts a search."""

    def search_start(
        prompts: str,
        model: str,
        aim: str,
        value: float,
        steps: float,
        width: float,
        height: float,
        duration: float,
        num_measured: float,
        max_rounds: float,
        seed: float,
    ) -> str:
        """Start a search for a plan; one runs at a time. Returns its name.

        Args:
            prompts: Calibration prompts, one a line.
            model: One that the server was started with.
            aim: What the plan must reach: PSNR, SSIM, density, or speed-up of attention.
            value: Of the aim.
            steps: Denoising steps.
            width: Pixels.
            height: Pixels.
            duration: Seconds.
            num_measured: Prompts to measure on; the others verify the promise.
            max_rounds: Verification rounds at most.
            seed: First seed.
        """
        with messages():
            size = (width, height, duration)
            given = (prompts, model, aim, value, steps, size, num_measured, max_rounds, seed)
            return worker.start(make_request(state, *given))

    return search_start


def make_request(
    state: AppState,
    prompts: str,
    model: str,
    aim: str,
    value: float,
    steps: float,
    size: tuple[float, float, float],
    num_measured: float,
    max_rounds: float,
    seed: float,
) -> SearchRequest:
    """What a form asks for, checked.

    Args:
        state: The server.
        prompts: One a line.
        model: The model.
        aim: What the plan must reach.
        value: Of the aim.
        steps: Denoising steps.
        size: Width, height in pixels, seconds.
        num_measured: Prompts to measure on.
        max_rounds: Verification rounds.
        seed: First seed.

    Raises:
        ConfigError: A value is out of range, or the model is not offered.
    """
    defaults = state.engine.call_defaults(state.settings.check_model(model))
    fps = int(defaults.pop("fps"))
    settled = settle(state.engine.shape(model), *size, fps)
    return SearchRequest(
        model=model,
        prompts=tuple(str(prompts).splitlines()),
        aim=aim,
        value=value,
        call={
            **defaults,
            "width": settled.width,
            "height": settled.height,
            "num_frames": settled.num_frames,
            "num_inference_steps": whole("steps", steps),
        },
        num_measured=whole("num_measured", num_measured),
        max_rounds=whole("max_rounds", max_rounds),
        seed=whole("seed", seed),
    )
