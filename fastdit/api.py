"""The public verbs: `enable` and `disable`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from fastdit.adapters import PipelineAdapter, find_adapter
from fastdit.config import AdaptiveConfig, AttentionConfig
from fastdit.errors import AlreadyEnabledError, ConfigError, NotEnabledError, UnsupportedModelError
from fastdit.session import LayerSlot, Session

TRANSFORMER_ATTRIBUTES = ("transformer", "transformer_2")

# The only process-wide state: which pipelines (or bare transformers) are enabled.
_sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()


def enable(pipe: Any, config: AttentionConfig | None = None) -> Session:
    """Replace the video self-attention of a Diffusers pipeline by sparse attention, until `disable`.

    Only processors of this pipeline's own layers are swapped; cross-attention, weights and other pipelines are left
    alone. If anything fails on the way, the pipeline is put back as it was.

    Args:
        pipe: A pipeline, or a bare transformer.
        config: Method and settings, default `AdaptiveConfig()`.

    Returns:
        The session: statistics, `summary()`, and a context manager that disables on exit.

    Raises:
        ConfigError: `config` is not a config.
        UnsupportedModelError: No adapter knows the pipeline's transformer.
        AlreadyEnabledError: The pipeline, or a transformer it shares with another one, is enabled already.
    """
    config = AdaptiveConfig() if config is None else config
    if not isinstance(config, AttentionConfig):
        raise ConfigError(f"config={config!r}: accepted is a config such as fastdit.AdaptiveConfig(...)")
    found = [(name, module, find_adapter(module)) for name, module in find_transformers(pipe)]
    if pipe in _sessions:
        raise AlreadyEnabledError(f"{type(pipe).__name__} is enabled already: call fastdit.disable(pipe) first")
    session = Session(config, pipe)
    try:
        for number, (name, module, adapter) in enumerate(found):
            session.transformer_names.append(name)
            _install(session, number, module, adapter)
    except BaseException:
        session.close()
        raise
    _sessions[pipe] = session
    session.push_undo(_forgetter(weakref.ref(pipe)))
    return session


def disable(pipe: Any) -> None:
    """Restore the very processors that `enable` replaced.

    Args:
        pipe: What was enabled.

    Raises:
        NotEnabledError: It is not enabled.
    """
    session = _sessions.get(pipe)
    if session is None:
        raise NotEnabledError(f"{type(pipe).__name__} is not enabled: call fastdit.enable(pipe) first")
    session.close()


def find_transformers(pipe: Any) -> list[tuple[str, nn.Module]]:
    """The denoising transformers of a pipeline, or the transformer itself.

    Raises:
        UnsupportedModelError: There is none.
    """
    if isinstance(pipe, nn.Module):
        return [("transformer", pipe)]
    found = [(name, getattr(pipe, name, None)) for name in TRANSFORMER_ATTRIBUTES]
    modules = [(name, module) for name, module in found if isinstance(module, nn.Module)]
    if not modules:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no transformer: accepted are Diffusers video pipelines with a "
            "`transformer`, or such a transformer itself"
        )
    return modules


def _install(session: Session, number: int, transformer: nn.Module, adapter: PipelineAdapter) -> None:
    """Swap the processors of one transformer and let the session hear of its calls."""
    sites = adapter.sites(transformer)
    for layer, (path, module) in enumerate(sites):
        original: Any = module.processor
        if isinstance(getattr(original, "slot", None), LayerSlot):
            raise AlreadyEnabledError(f"{path} is enabled already through another pipeline that shares its transformer")
        slot = LayerSlot(session, number, layer, path, len(sites))
        session.push_undo(_restorer(module, original))
        module.processor = adapter.processor(original, slot)
        session.slots.append(slot)
    session.push_undo(adapter.attach(transformer, session, number))


def _restorer(module: Any, original: Any) -> Callable[[], None]:
    def restore() -> None:
        # A processor that somebody else has put in since then is theirs to keep.
        if isinstance(getattr(module.processor, "slot", None), LayerSlot):
            module.processor = original

    return restore


def _forgetter(reference: weakref.ref[Any]) -> Callable[[], None]:
    # The session must not keep the pipeline alive, hence the weak reference.
    def forget() -> None:
        pipe = reference()
        if pipe is not None:
            _sessions.pop(pipe, None)

    return forget
