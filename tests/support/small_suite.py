"""A suite of a few made-up clips: what `make_clips` wants, without any model."""

import numpy as np

CLIPS = ["a red circle-0", "a blue square-0", "a green cross-0"]
ROWS = ["dense", "dense-math", "adaptive-0.2"]


def made_frames(row, number):
    """Dense is the truth, the other backend differs by a level of 255, methods by much."""
    frames = np.random.default_rng(number).random((4, 40, 40, 3), dtype=np.float32)
    return frames * {"dense": 1, "dense-math": 254 / 255}.get(row, 0.8)


def small_maker(log=None, process="one"):
    """Makes a clip at once; writes what it made into `log`."""

    def make(row, number, video):
        video.write_bytes(b"not really a video")
        if log is not None:
            with log.open("a") as file:
                file.write(f"{row}/{number}\n")
        dense = row.startswith("dense")
        right = dense or number > 0
        return made_frames(row, number), {
            "prompt": CLIPS[number][:-2],
            "seconds": 2.0 if dense else 1.0 + number,
            "density": 1.0 if dense else 0.5,
            "density_cells": [] if dense else [[[0, 0, 1.0], [1, 0, 0.1 * number]]],
            "process": process,
            "num_processes": 1,
            "verdicts": {"color": True, "all": right},
            "scores": {},
        }

    return make
