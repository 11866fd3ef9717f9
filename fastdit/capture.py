"""Queries, keys and values of a dense run, kept for comparing selectors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdit.errors import ConfigError, InvalidInputError
from fastdit.grid import VideoGrid
from fastdit.layer_slot import ForwardState, LayerSlot
from fastdit.probe import AttentionProbe
from fastdit.whole_files import whole_file

FORMAT = "fastdit.attention/1"


@dataclass(frozen=True, kw_only=True)
class CapturedCall:
    """One self-attention call, its first batch entry; tensors are on the CPU in the dtype they were computed in.

    Args:
        transformer: Number of the transformer in the pipeline.
        layer: Number of the layer.
        step: Denoising step.
        branch: CFG branch.
        grid: Geometry; tokens are in the model's order.
        query: `[H, S, D]`, after norms and RoPE.
        key: Likewise.
        value: Likewise.
    """

    transformer: int
    layer: int
    step: int
    branch: str
    grid: VideoGrid
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


class AttentionCapture(AttentionProbe):
    """Context manager that keeps the tensors of chosen layers and steps; the pipeline is restored on exit.

    Args:
        pipe: A pipeline that is not enabled.
        steps: Denoising steps; the first CFG branch called in a step is kept.
        layers: Layers to keep; `None` keeps all.
        heads: Heads to keep of each layer; `None` keeps all.
        dtype: What is stored; `None` for what the model computes in.
    """

    def __init__(
        self,
        pipe: Any,
        steps: Collection[int],
        layers: Collection[int] | None = None,
        heads: Collection[int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(pipe, steps)
        self._heads, self._dtype = None if heads is None else sorted(set(heads)), dtype
        self.calls: list[CapturedCall] = []
        self._layers = None if layers is None else frozenset(layers)

    def wants(self, transformer: int, layer: int, step: int) -> bool:
        """Whether a call is to be kept: its layer is chosen too."""
        return (self._layers is None or layer in self._layers) and super().wants(transformer, layer, step)

    def measure(
        self, slot: LayerSlot, forward: ForwardState, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Keep the first batch entry of `[B, S, H, D]`.

        Raises:
            ConfigError: There is no such head, or values are too large for the type that is to be stored.
        """
        tensors = (self._stored(x[0].transpose(0, 1).detach()) for x in (query, key, value))
        self.calls.append(
            CapturedCall(
                transformer=slot.transformer,
                layer=slot.layer,
                step=forward.tick.step,
                branch=str(forward.tick.branch),
                grid=forward.grid,
                **dict(zip(("query", "key", "value"), tensors, strict=True)),
            )
        )

    def _stored(self, x: torch.Tensor) -> torch.Tensor:
        if self._heads is not None:
            if not self._heads or self._heads[0] < 0 or self._heads[-1] >= len(x):
                raise ConfigError(f"heads={self._heads}: accepted are numbers from 0 to {len(x) - 1}")
            x = x[self._heads]
        x = x.cpu().contiguous()
        if self._dtype is None:
            return x
        stored = x.to(self._dtype)
        if bool((stored.isinf() & x.isfinite()).any()):
            raise ConfigError(f"dtype={self._dtype}: values up to {x.abs().max():.3g} do not fit; give bfloat16")
        return stored


def save_calls(calls: Collection[CapturedCall], path: Path) -> None:
    """Write captured calls to one file that `torch.load(weights_only=True)` reads.

    Raises:
        OutputError: The file cannot be written.
    """
    entries = [{**vars(call), "grid": vars(call.grid)} for call in calls]
    # Into an open file: of a path, the archive would keep the temporary name.
    with whole_file(path, make_folder=True) as partial, partial.open("wb") as file:
        try:
            torch.save({"format": FORMAT, "calls": entries}, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error)) from error


def load_calls(path: Path) -> list[CapturedCall]:
    """Read what `save_calls` wrote.

    Raises:
        InvalidInputError: The file is missing, or holds something else.
    """
    try:
        data = torch.load(path, weights_only=True)
        if data["format"] != FORMAT:
            raise KeyError("format")
        return [CapturedCall(**{**entry, "grid": VideoGrid(**entry["grid"])}) for entry in data["calls"]]
    except OSError as error:
        raise InvalidInputError(f"captured {str(path)!r} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise InvalidInputError(
            f"captured {str(path)!r} is no file of captured attention: make one with `fastdit bench capture`"
        ) from error
