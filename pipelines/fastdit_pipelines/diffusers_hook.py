"""The only user of Diffusers' hook interface: tells a session of branches, steps, calls and run ends.

Three listeners on the root of a transformer, each where it survives offloading and compilation: the cache context
through a `StateManager` held by a stateful hook, the call itself through a torch pre-hook, the end of a run through
the hook's `reset_state`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from fastdit.grid import VideoGrid
from fastdit.session import Session

HOOK_NAME = "fastdit"

GridReader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], VideoGrid]


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
    """Holds the listener where Diffusers looks for it, and hears when a pipeline call is over."""

    _is_stateful = True

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.context: ContextListener | None = ContextListener(session)
        self._session = session

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Called by the pipeline at the end of every call."""
        if self.context is not None:
            self.context.reset()
        self._session.end_run()
        return module


def attach_session(transformer: nn.Module, session: Session, number: int, read_grid: GridReader) -> Callable[[], None]:
    """Install the listeners on a transformer.

    Args:
        transformer: Root module.
        session: Who is to be told.
        number: Number of the transformer in the pipeline.
        read_grid: Derives the geometry from the arguments of a call.

    Returns:
        The way back.
    """

    def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        session.begin_forward(number, read_grid(module, args, kwargs))

    had_forward = "forward" in vars(transformer)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(SessionHook(session), HOOK_NAME)
    installed = vars(transformer)["forward"]
    handle = transformer.register_forward_pre_hook(before_forward, with_kwargs=True)

    def detach() -> None:
        handle.remove()
        if vars(transformer).get("forward") is not installed:
            # Somebody wrapped the module after us. Removing our hook would drop theirs, so only its ears are closed.
            hook = registry.get_hook(HOOK_NAME)
            if hook is not None:
                _silence(registry, hook)
            return
        registry.remove_hook(HOOK_NAME, recurse=False)
        if not had_forward:
            del transformer.forward

    return detach


def _silence(registry: Any, hook: SessionHook) -> None:
    """Make our hook inert and free its name, leaving the chain of wrapped forwards as it is."""
    hook._is_stateful = False
    hook.context = None
    inert = f"{HOOK_NAME}-inert-{id(hook)}"
    registry.hooks = {inert if name == HOOK_NAME else name: item for name, item in registry.hooks.items()}
    registry._hook_order = [inert if name == HOOK_NAME else name for name in registry._hook_order]


def forwarded(name: str) -> Any:
    """A property that reads and writes the attribute `name` of the wrapped original processor."""

    def read(processor: Any) -> Any:
        return getattr(processor.original, name, None)

    def write(processor: Any, value: Any) -> None:
        setattr(processor.original, name, value)

    return property(read, write)
