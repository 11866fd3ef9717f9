"""Where the time of a pipeline call goes: text encoding, denoising, decoding, and self-attention layers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from torch import nn

from fastdit.adapters import find_adapter
from fastdit.api import find_transformers
from fastdit.spans import now

STAGES = ("text_encoding", "denoising", "decoding")


class StageTimer:
    """Context manager around one call of a pipeline.

    Args:
        pipe: A Diffusers pipeline, enabled or not.
        layers: Also time the self-attention layers, their projections included. On a GPU every layer then waits for
            the one before it, so such a call is not to be timed as a whole.

    Attributes:
        seconds: By stage. Denoising is from the begin of the first transformer call to the end of the last.
    """

    def __init__(self, pipe: Any, layers: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._pipe, self._layers = pipe, layers
        self._undo = ExitStack()
        self._first: float | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for name, part in self._pipe.components.items():
                if name.startswith("text_encoder") and isinstance(part, nn.Module):
                    self._time_module(undo, part, "text_encoding")
            for _, transformer in find_transformers(self._pipe):
                self._time_denoising(undo, transformer)
                if self._layers:
                    for _, site in find_adapter(transformer).sites(transformer):
                        self._time_module(undo, site, "attention_layers")
            if hasattr(self._pipe.components.get("vae"), "decode"):
                self._time_decoding(undo, self._pipe.vae)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _add(self, stage: str, start: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now() - start

    def _time_module(self, undo: ExitStack, module: nn.Module, stage: str) -> None:
        starts: list[float] = []

        def before(*_: Any) -> None:
            starts.append(now())

        def after(*_: Any) -> None:
            self._add(stage, starts.pop())

        undo.callback(module.register_forward_pre_hook(before).remove)
        undo.callback(module.register_forward_hook(after).remove)

    def _time_denoising(self, undo: ExitStack, transformer: nn.Module) -> None:
        def before(*_: Any) -> None:
            if self._first is None:
                self._first = now()

        def after(*_: Any) -> None:
            assert self._first is not None, "set when the call began"
            self.seconds["denoising"] = now() - self._first

        undo.callback(transformer.register_forward_pre_hook(before).remove)
        undo.callback(transformer.register_forward_hook(after).remove)

    def _time_decoding(self, undo: ExitStack, vae: Any) -> None:
        original, own = vae.decode, "decode" in vars(vae)

        def decode(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return original(*args, **kwargs)
            finally:
                self._add("decoding", start)

        vae.decode = decode
        undo.callback(lambda: setattr(vae, "decode", original) if own else delattr(vae, "decode"))
