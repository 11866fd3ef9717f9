"""An engine for tests of the app: frames are as bright as their seed says, and nothing is loaded."""

import time

import numpy as np

from fastdit_pipelines.engine import PipelineEngine

PROMPT = "a red circle moving left on a dark background"
# A clip that takes little time.
SMALL = {"width": 32, "height": 32, "duration": 0.75, "num_inference_steps": 2}


class StubEngine(PipelineEngine):
    """Fast, but goes through the real queue, form and run folders.

    Args:
        step_seconds: Time of a denoising step.
        side: Frames are `[4, side, side, 3]`.
    """

    def __init__(self, step_seconds=0.005, side=16):
        self.step_seconds, self.side = step_seconds, side
        self.loaded, self.runs = [], []

    def load(self, model):
        self.loaded.append(model)
        return object()

    def warm_up(self, pipe, call, image=None):
        pass

    def generate(self, pipe, call, *, image=None, on_step=None):
        if call["prompt"] == "break":
            raise RuntimeError("secret of the server")
        for step in range(call["num_inference_steps"]):
            time.sleep(self.step_seconds)
            on_step(step + 1, call["num_inference_steps"])
        self.runs.append(call["seed"])
        return np.full((4, self.side, self.side, 3), call["seed"] / 1000, np.float32)

    def write_video(self, frames, path, fps):
        path.write_text(f"brightness {frames.mean() * 1000:.0f}")
