"""Tiny random pipelines as the app needs them, and searches on them that take seconds."""

import time

import numpy as np
import torch
from tests_support import build_tiny_wan

import fastdit
from fastdit.plan import ALL_SPARSE

CALL = {
    "negative_prompt": "negative",
    "guidance_scale": 4.0,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "max_sequence_length": 16,
}
SMALL = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0}
LADDER = {f"adaptive_{d}": fastdit.AdaptiveConfig(density=d, schedule=ALL_SPARSE, **SMALL) for d in (0.2, 0.5, 0.8)}


class TinyEngine:
    """`fastdit_ui.engine.Engine` over one random Wan pipeline."""

    def __init__(self):
        self.pipe = build_tiny_wan()

    def call_defaults(self, model):
        return {**CALL, "fps": 8}

    def method_defaults(self, model, method):
        return {"dense_steps": 1, **SMALL}

    def plans(self, model):
        return {}

    def shape(self, model, *, fetch=True):
        return None

    def load(self, model):
        return self.pipe

    def generate(self, pipe, call, *, image=None, on_step=None):
        arguments = dict(call)
        seed = arguments.pop("seed")

        def callback(running, step, timestep, tensors):
            if on_step is not None:
                on_step(step + 1, running.num_timesteps)
            return tensors

        rng = torch.Generator("cpu").manual_seed(seed)
        out = pipe(**arguments, generator=rng, output_type="np", callback_on_step_end=callback)
        return np.asarray(out.frames[0], np.float32)

    def write_video(self, frames, path, fps):
        path.write_bytes(b"video of " + str(frames.shape).encode())


def wait_until(condition, seconds=120):
    """Wait for another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
