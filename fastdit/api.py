"""The public verbs: `enable` and `disable`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from fastdit.adapters import PipelineAdapter, find_adapter
from fastdit.config import AdaptiveConfig, AttentionConfig
from fastdit.errors import AlreadyEnabledError, ConfigError, NotEnabledError, UnsupportedModelError
from fastdit.guard import RecallGuard
from fastdit.layer_slot import LayerSlot
from fastdit.plan import Plan
from fastdit.plan_config import PlanConfig, identify
from fastdit.session import Session

TRANSFORMER_ATTRIBUTES = ("transformer", "transformer_2")

# The only process-wide state: which pipelines (or bare transformers) are enabled.
_sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()


def enable(
    pipe: Any,
    config: AttentionConfig | Plan | str | os.PathLike[str] | None = None,
    *,
    guard: RecallGuard | float | None = None,
) -> Session:
    """Replace the video self-attention of a Diffusers pipeline by sparse attention, until `disable`.

    Only processors of this pipeline's own layers are swapped; cross-attention, weights and other pipelines are left
    alone. If anything fails on the way, the pipeline is put back as it was.

    Args:
        pipe: A pipeline, or a bare transformer.
        config: Method and settings, default `AdaptiveConfig()`; or a plan, or the path of one.
        guard: Measure the recall of heads on sampled rows while they run, and make those dense for the rest of a run
            that fall under a share of the recall that the plan notes: that share, or a `RecallGuard`.

    Returns:
        The session: statistics, `summary()`, and a context manager that disables on exit.

    Raises:
        ConfigError: `config` is not a config, or `guard` no guard, or nothing is promised that it could hold heads to.
        PlanError: The plan cannot be read, or was made for another model.
        UnsupportedModelError: No adapter knows the pipeline's transformer.
        AlreadyEnabledError: The pipeline, or a transformer it shares with another one, is enabled already.
    """
    config, settled_guard = settle_config(config), _settle_guard(guard)
    found = [(name, module, find_adapter(module)) for name, module in find_transformers(pipe)]
    if isinstance(config, PlanConfig):
        config.check_model([identify(module, adapter.sites(module)) for _, module, adapter in found])
    if pipe in _sessions:
        raise AlreadyEnabledError(f"{type(pipe).__name__} is enabled already: call fastdit.disable(pipe) first")
    session = Session(config, pipe, settled_guard)
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


def settle_config(config: Any) -> AttentionConfig:
    """The config that is meant by a config, a plan, the path of one, or `None`.

    Raises:
        ConfigError: It is none of these.
        PlanError: The plan cannot be read.
    """
    if config is None:
        return AdaptiveConfig()
    if isinstance(config, (str, os.PathLike)):
        config = Plan.load(config)
    if isinstance(config, Plan):
        return PlanConfig(plan=config)
    if not isinstance(config, AttentionConfig):
        raise ConfigError(
            f"config={config!r}: accepted are a config such as fastdit.AdaptiveConfig(...), a plan, and its path"
        )
    return config


def _settle_guard(guard: Any) -> RecallGuard | None:
    """The guard that was meant."""
    if isinstance(guard, (int, float)) and not isinstance(guard, bool):
        return RecallGuard(share=guard)
    if guard is not None and not isinstance(guard, RecallGuard):
        raise ConfigError(f"guard={guard!r}: accepted are a share of the promised recall, and a fastdit.RecallGuard")
    return guard


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
        return [("transformer", _uncompiled(pipe))]
    found = [(name, _uncompiled(getattr(pipe, name, None))) for name in TRANSFORMER_ATTRIBUTES]
    modules = [(name, module) for name, module in found if isinstance(module, nn.Module)]
    if not modules:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no transformer: accepted are Diffusers video pipelines with a "
            "`transformer`, or such a transformer itself"
        )
    return modules


def _uncompiled(module: Any) -> Any:
    """What `torch.compile(module)` was given."""
    return getattr(module, "_orig_mod", module)


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
