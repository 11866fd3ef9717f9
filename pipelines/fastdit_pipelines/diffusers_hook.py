"""The only user of Diffusers' hook interface: tells a session of branches, steps, calls and run ends.

Three listeners on the root of a transformer, each where it survives offloading and compilation: the cache context
through a `StateManager` held by a stateful hook, the call itself through a torch pre-hook, the end of a run through
the hook's `reset_state`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, HookFunctionReference, StateManager
from torch import nn

from fastdit.grid import VideoGrid
from fastdit.session import Session, TextLengths

HOOK_NAME = "fastdit"

GridReader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], VideoGrid]
TextLengthReader = Callable[[tuple[Any, ...], dict[str, Any]], TextLengths]


class _NoState(BaseState):  # type: ignore[misc]  # diffusers is untyped
    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept here; the session holds all state."""


class ContextListener(StateManager):  # type: ignore[misc]  # diffusers is untyped
    """Passes the cache context on to the session's clock.

    Diffusers up to 0.40 sends the bare name, later releases an object with name and step, all of them `None` on exit.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(_NoState)
        self._session = session

    def set_context(self, context: Any) -> None:
        """Called by `transformer.cache_context(...)` on entry and exit."""
        super().set_context(context)
        if context is None or isinstance(context, str):
            self._session.clock.set_context(context)
        else:
            self._session.clock.set_context(context.name, context.step_index, context.num_inference_steps)


class SessionHook(ModelHook):  # type: ignore[misc]  # diffusers is untyped
    """Holds the listener where Diffusers looks for it, and hears when a pipeline call is over.

    Args:
        session: Who is to be told; `None` in a copy of the model, which is enabled nowhere.
    """

    _is_stateful = True

    def __init__(self, session: Session | None = None) -> None:
        super().__init__()
        self.context = None if session is None else ContextListener(session)
        self._session = session

    def __reduce__(self) -> tuple[Any, ...]:
        return SessionHook, ()

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Called by the pipeline at the end of every call."""
        if self.context is not None:
            self.context.reset()
        if self._session is not None:
            self._session.end_run()
        return module


class ForwardListener:
    """Torch pre-hook of a transformer: tells the session that a call begins.

    Args:
        session: Who is to be told; `None` in a copy of the model.
        number: Number of the transformer in the pipeline.
        read_grid: Derives the geometry from the arguments of a call.
        read_text: Then asked for the valid text of each batch entry, by families that pad text.
    """

    def __init__(
        self,
        session: Session | None = None,
        number: int = 0,
        read_grid: GridReader | None = None,
        read_text: TextLengthReader | None = None,
    ) -> None:
        self._session = session
        self._number = number
        self._read_grid = read_grid
        self._read_text = read_text

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardListener, ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called by torch before `module.forward`."""
        if self._session is not None and self._read_grid is not None:
            grid = self._read_grid(module, args, kwargs)
            text_lengths = None if self._read_text is None else self._read_text(args, kwargs)
            self._session.begin_forward(self._number, grid, text_lengths)


def attach_session(
    transformer: nn.Module,
    session: Session,
    number: int,
    read_grid: GridReader,
    read_text: TextLengthReader | None = None,
) -> Callable[[], None]:
    """Install the listeners on a transformer.

    Args:
        transformer: Root module.
        session: Who is to be told.
        number: Number of the transformer in the pipeline.
        read_grid: Derives the geometry from the arguments of a call.
        read_text: See `ForwardListener`.

    Returns:
        A function that uninstalls them.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    _remove_hook(registry)
    _add_hook(registry, SessionHook(session))
    listener = ForwardListener(session, number, read_grid, read_text)
    handle = transformer.register_forward_pre_hook(listener, with_kwargs=True)

    def detach() -> None:
        handle.remove()
        _remove_hook(registry)

    return detach


def _add_hook(registry: Any, hook: SessionHook) -> None:
    """Enter a hook that only listens, without the wrapper of `forward` that `register_hook` would make.

    A wrapper refers to the module it was made for, so a deep copy would run the original, and accelerate's offloading
    drops wrappers that are newer than its own. First in the list, ours is never the last one or the neighbour of one
    that is removed, so Diffusers' own bookkeeping of wrappers stays true.
    """
    hook.fn_ref = HookFunctionReference()
    registry.hooks[HOOK_NAME] = hook
    registry._hook_order.insert(0, HOOK_NAME)
    registry._fn_refs.insert(0, hook.fn_ref)


def _remove_hook(registry: Any) -> None:
    """Take our hook out again, also one that a copied model has brought along."""
    if HOOK_NAME in registry.hooks:
        place = registry._hook_order.index(HOOK_NAME)
        del registry.hooks[HOOK_NAME], registry._hook_order[place], registry._fn_refs[place]


def forwarded(name: str) -> Any:
    """A property that reads and writes the attribute `name` of the wrapped original processor."""

    def read(processor: Any) -> Any:
        return getattr(processor.original, name, None)

    def write(processor: Any, value: Any) -> None:
        setattr(processor.original, name, value)

    return property(read, write)
