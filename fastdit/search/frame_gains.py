"""How much errors of a layer's attention move the frames: the frames' gradient at its output, times these errors.

To first order an error `d` of one attention output moves the frames by `J d`. With `u` standard normal noise of the
frames' shape and `g = J^T u`, which one backward pass through the whole run gives at every attention output, the
expectation of `(g . d)^2` is the squared norm of `J d` (Hutchinson's estimator of a trace). A single draw of `u` says
little of one sum, so `d` is cut into blocks of tokens, and squares of their products are added: parts of the error in
different blocks are taken as independent, those within a block are not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid
from fastdit.layer_slot import ForwardState
from fastdit.search.head_errors import FloatArray
from fastdit.search.own_attribute import own_attribute

# Tokens in t, y and x whose errors are added before they are squared: about a query tile. On the bundled model single
# tokens do not tell which plans of one density have better frames in early phases, blocks do (docs/search.md).
BLOCK = (6, 4, 4)
# Seed of the noise.
SEED = 1000

Errors = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Place = tuple[int, int, int]


class FrameGains:
    """Squared products of gradients and errors, gathered while a run with gradients is gone through backwards.

    Each transformer call is computed a second time when its gradients are due, so that no more than one call holds its
    activations; with the transformer's own gradient checkpointing no more than one block, computed a third time. Errors
    of the wanted calls are computed then, too, and dropped once they have met their gradients.

    Args:
        steps: Denoising steps whose errors are wanted; all guidance branches are.
        modes: Names of the modes whose errors are.

    Attributes:
        squares: Sum over blocks, branches and batch entries, `{(transformer, layer, step): [modes, H]}`.
        num_values: Values of the frames.
        going_back: Whether calls are computed again.
    """

    def __init__(self, steps: Collection[int], modes: Sequence[str]) -> None:
        self.steps, self.modes = frozenset(steps), tuple(modes)
        self.squares: dict[Place, FloatArray] = {}
        self.num_values = 0
        self.going_back = False
        # Of the call that is being gone through backwards.
        self._again: ForwardState | None = None
        self._errors: dict[Place, tuple[torch.Tensor, VideoGrid]] = {}
        self._computed: dict[Place, int] = {}
        self._times: list[int] = []
        self._calls = self._place = 0

    @contextmanager
    def following(self, transformers: list[nn.Module], state: Callable[[int], ForwardState | None]) -> Iterator[None]:
        """Calls of the transformers keep what going backwards takes; weights need no gradients.

        Args:
            transformers: The pipeline's.
            state: What is known of the call of a transformer that is being made.
        """
        self._times = [2 if getattr(module, "is_gradient_checkpointing", False) else 1 for module in transformers]
        with ExitStack() as stack:
            for number, module in enumerate(transformers):
                stack.enter_context(own_attribute(module, "forward", self._kept(number, module.forward, state)))
            yield

    def _kept(self, number: int, forward: Any, state: Callable[[int], ForwardState | None]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            self._calls += 1
            known, place = state(number), self._calls
            named = "hidden_states" in kwargs
            hidden = kwargs.pop("hidden_states") if named else args[0]
            if not hidden.requires_grad:
                # The first latents depend on nothing, but everything depends on them.
                hidden = hidden.detach().requires_grad_()

            def run(latents: torch.Tensor) -> Any:
                self._again, self._place = known, place
                if named:
                    return forward(*args, hidden_states=latents, **kwargs)
                return forward(latents, *args[1:], **kwargs)

            return checkpoint(run, hidden, use_reentrant=False)

        return call

    def state(self, current: ForwardState | None) -> ForwardState | None:
        """What is known of the call that is being computed: `current`, or of an earlier one that is computed again."""
        return self._again if self.going_back else current

    def follow(self, out: torch.Tensor, transformer: int, layer: int, forward: ForwardState) -> None:
        """Multiply the gradient of an attention output with its errors once it is known.

        Args:
            out: `[B, S, H, D]`.
            transformer: Number of the transformer.
            layer: Number of the layer.
            forward: Of the call.
        """
        step, key = forward.tick.step, (self._place, transformer, layer)
        if step not in self.steps or not out.requires_grad:
            return

        def meet(gradient: torch.Tensor) -> None:
            errors, grid = self._errors.pop(key)
            place = (transformer, layer, step)
            self.squares[place] = self.squares.get(place, 0.0) + block_squares(errors, gradient, grid)

        out.register_hook(meet)

    def takes(self, transformer: int, layer: int, step: int) -> bool:
        """Whether errors of a layer are due that is computed again: the last time, if that happens twice."""
        if step not in self.steps:
            return False
        key = (self._place, transformer, layer)
        self._computed[key] = self._computed.get(key, 0) + 1
        return self._computed[key] == self._times[transformer]

    def keep(self, errors: torch.Tensor, transformer: int, layer: int, grid: VideoGrid) -> None:
        """Keep the errors `[modes, B, S, H, D]` of a layer of the call that is being computed again."""
        self._errors[self._place, transformer, layer] = (errors, grid)

    def go_back(self, frames: torch.Tensor) -> None:
        """Send noise backwards through the run.

        Args:
            frames: Of the run, with gradients.

        Raises:
            ConfigError: They do not depend on the attention outputs in a way that gradients can be taken of.
        """
        if not isinstance(frames, torch.Tensor) or not frames.requires_grad:
            raise ConfigError(
                "the pipeline's frames have no gradients, so gains of frames cannot be measured: gains='calls' "
                "(--gains calls) does without"
            )
        noise = torch.randn(frames.shape, generator=torch.Generator("cpu").manual_seed(SEED))
        self.num_values = frames.numel()
        self.going_back = True
        try:
            frames.backward(noise.to(frames))
        finally:
            self.going_back = False
            self._errors.clear()


def block_squares(errors: torch.Tensor, gradient: torch.Tensor, grid: VideoGrid) -> FloatArray:
    """`sum over blocks of (sum in the block of gradient . error)^2` of each mode and head; video tokens alone.

    Args:
        errors: `[modes, B, S, H, D]`.
        gradient: `[B, S, H, D]`.
        grid: Geometry.

    Returns:
        fp64 `[modes, H]`.
    """
    products = torch.stack([(one.float() * gradient.float()).sum(-1) for one in errors]).double()
    video = products[:, :, grid.video_start : grid.video_start + grid.video_length]
    video = video.transpose(2, 3).unflatten(3, (grid.frames, grid.height, grid.width))
    missing = [-size % block for size, block in zip(video.shape[3:], BLOCK, strict=True)]
    video = pad(video, (0, missing[2], 0, missing[1], 0, missing[0]))
    for place, block in zip((3, 5, 7), BLOCK, strict=True):
        video = video.unflatten(place, (-1, block))
    squares: FloatArray = video.sum((4, 6, 8)).square().sum((1, 3, 4, 5)).cpu().numpy()
    return squares


def followed_steps(run: list[int]) -> list[int]:
    """The steps of a phase in which errors meet gradients: those at a quarter and at three quarters of it.

    Args:
        run: Steps of the phase.
    """
    return sorted({run[len(run) // 4], run[3 * len(run) // 4]}) if run else []


def frame_gain_table(
    followed: FrameGains, number: int, errors: FloatArray, runs: Sequence[list[int]], names: Sequence[str]
) -> FloatArray:
    """What a mode adds to the frames' mean squared error over a phase, over its error in one call.

    Args:
        followed: After going back.
        number: Of the transformer.
        errors: Its `[phases, layers, heads, modes]`.
        runs: Steps that it runs in each phase.
        names: Of all modes.

    Returns:
        Likewise; NaN in phases in which it is idle.

    Raises:
        ConfigError: Gradients are missing or no numbers.
    """
    columns = [list(names).index(name) for name in followed.modes]
    gains, none = np.full_like(errors, np.nan), np.full((len(columns), errors.shape[2]), np.nan)
    for phase, run in enumerate(runs):
        steps = followed_steps(run)
        for layer in range(errors.shape[1]) if steps else ():
            squares = np.sum([followed.squares.get((number, layer, step), none) for step in steps], 0)
            lost = not np.any(squares) and (errors[phase, layer][:, columns] > 0).any()
            if lost or not np.isfinite(squares).all():
                raise ConfigError(
                    f"gradients of the frames do not reach layer {layer} in steps {steps} as numbers (float16 may "
                    "overflow): gains='calls' (--gains calls) does without"
                )
            added = squares.T * (len(run) / len(steps) / followed.num_values)
            gains[phase, layer] = gains_of_modes(added, errors[phase, layer], columns)
    return gains


def gains_of_modes(added: FloatArray, errors: FloatArray, columns: list[int]) -> FloatArray:
    """What a mode adds to the frames' error over its error in a call, from that of a few modes.

    Between them the logarithm of the gain is taken as linear in that of the error: few tiles err in another direction
    than many, and another share of their error reaches the frames.

    Args:
        added: Error of the frames that the modes `columns` add in a phase, `[..., columns]`.
        errors: Of all modes in a call, `[..., modes]`.
        columns: Numbers of these modes.

    Returns:
        `[..., modes]`; 1 for a head that errs in none of them, 0 for one that errs and does not move the frames.
    """
    gains = np.ones_like(errors)
    for head in np.ndindex(errors.shape[:-1]):
        own, known = errors[head][columns], added[head]
        usable = (own > 0) & (known > 0)
        if not usable.any():
            # What errs without moving the frames costs nothing.
            gains[head] = 1.0 if not (own > 0).any() else 0.0
            continue
        order = np.argsort(own[usable])
        level = np.log(own[usable][order])
        gain = np.log(known[usable][order]) - level
        asked = np.log(np.maximum(errors[head], np.finfo(float).tiny))
        gains[head] = np.exp(np.interp(asked, level, gain))
    return gains
