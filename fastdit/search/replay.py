"""Transformer calls of a dense run, kept and given again: what runs have in common is computed once.

A run that is dense up to some step makes the very calls of the dense run until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdit.search.own_attribute import own_attribute
from fastdit.search.results import Arrays


class ReplayedOutput:
    """A transformer's output in every form that pipelines read it in: `.sample`, or the first of a tuple.

    Args:
        sample: The tensor.
    """

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample

    def __getitem__(self, place: int) -> torch.Tensor:
        return (self.sample,)[place]


class RecordedCalls:
    """Outputs of transformer calls in the order in which they were made.

    Args:
        before: Calls of earlier steps are kept.

    Attributes:
        steps: Step of each call.
        outputs: Its output, on the CPU; empty once a call gave more than one tensor, which is not replayed.
    """

    def __init__(self, before: int = 0) -> None:
        self.before = before
        self.steps: list[int] = []
        self.outputs: list[torch.Tensor] = []

    def add(self, step: int, output: Any) -> None:
        """Keep a call, if its step is early enough."""
        if step >= self.before:
            return
        if isinstance(output, tuple) and len(output) != 1:
            self.before = 0
            self.steps.clear()
            self.outputs.clear()
            return
        self.steps.append(step)
        self.outputs.append(sample_of(output).detach().to("cpu", copy=True))

    def to_arrays(self) -> Arrays:
        """As arrays; bfloat16 as float32, which holds it exactly."""
        arrays: Arrays = {"steps": np.array(self.steps, np.int64)}
        for number, output in enumerate(self.outputs):
            wide = output.float() if output.dtype == torch.bfloat16 else output
            arrays |= {f"call_{number}": wide.numpy(), f"dtype_{number}": np.array(str(output.dtype))}
        return arrays


def calls_before(arrays: Arrays, step: int) -> list[torch.Tensor]:
    """The recorded outputs of all steps before one.

    Args:
        arrays: By `RecordedCalls.to_arrays`.
        step: Denoising step.
    """
    chosen = [number for number, at in enumerate(arrays["steps"].tolist()) if at < step]
    types = [getattr(torch, str(arrays[f"dtype_{number}"]).removeprefix("torch.")) for number in chosen]
    return [torch.from_numpy(arrays[f"call_{n}"]).to(dtype) for n, dtype in zip(chosen, types, strict=True)]


@contextmanager
def replayed(transformers: Sequence[nn.Module], outputs: Sequence[torch.Tensor]) -> Iterator[None]:
    """The first calls of the transformers, in whichever order they come, return `outputs` instead of being computed.

    To be entered before the pipeline is enabled, so that hooks still hear of every call.

    Args:
        transformers: The pipeline's.
        outputs: What the calls return.
    """
    rest = list(outputs)[::-1]

    def replaying(forward: Any) -> Any:
        def replay(*args: Any, **kwargs: Any) -> Any:
            if not rest:
                return forward(*args, **kwargs)
            given = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
            output = rest.pop().to(given.device, copy=True)
            return ReplayedOutput(output) if kwargs.get("return_dict", True) else (output,)

        return replay

    with ExitStack() as stack:
        for module in transformers:
            stack.enter_context(own_attribute(module, "forward", replaying(module.forward)))
        yield


def sample_of(output: Any) -> torch.Tensor:
    """The sample of a transformer's output, in whichever form it was asked for."""
    if isinstance(output, torch.Tensor):
        return output
    sample: torch.Tensor = output[0] if isinstance(output, (tuple, ReplayedOutput)) else output.sample
    return sample
