"""Which implementation runs, and why another does not."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastdit_kernels.errors import InvalidInputError, KernelUnavailableError

logger = logging.getLogger(__name__)

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Implementation:
    """A way to run block-sparse attention.

    Args:
        name: What users write.
        module: Where its `attend` is; `None` while there is none.
        missing: Why it cannot run, for `module=None`.
        auto_devices: Device types on which `"auto"` may choose it; `None` for all.
    """

    name: str
    module: str | None
    missing: str = ""
    auto_devices: tuple[str, ...] | None = None

    def unavailable_reason(self, query: torch.Tensor) -> str | None:
        """Why this implementation cannot take `query`; `None` if it can."""
        if self.module is None:
            return self.missing
        if not query.dtype.is_floating_point or query.dtype.itemsize < 2:
            return f"dtype {query.dtype} is not supported: use float64, float32, bfloat16 or float16"
        return None

    def auto_reason(self, query: torch.Tensor) -> str | None:
        """Why `"auto"` does not choose this implementation; `None` if it may."""
        if self.auto_devices is not None and query.device.type not in self.auto_devices:
            return f"on {query.device.type} it runs only when named"
        return self.unavailable_reason(query)


# In order of preference of "auto".
IMPLEMENTATIONS = {
    item.name: item
    for item in (
        Implementation("triton", None, "this version of fastdit ships no Triton kernel yet"),
        Implementation("flex", "fastdit_kernels.implementations.flex", auto_devices=("cuda",)),
        Implementation("torch", "fastdit_kernels.implementations.torch_gather"),
        Implementation("reference", "fastdit_kernels.implementations.reference"),
    )
}


def resolve(name: str, query: torch.Tensor) -> str:
    """The implementation to run: `name` itself, or the first that can run for `"auto"`.

    Raises:
        InvalidInputError: Unknown name.
        KernelUnavailableError: The named implementation cannot run; a named one never falls back.
    """
    if name == "auto":
        for item in IMPLEMENTATIONS.values():
            reason = item.auto_reason(query)
            if reason is None:
                logger.debug("auto chose %r for %s %s", item.name, query.device.type, query.dtype)
                return item.name
            logger.debug("auto passed over %r: %s", item.name, reason)
        raise KernelUnavailableError(f"no implementation takes {query.dtype} tensors on {query.device}: {reason}")
    if name not in IMPLEMENTATIONS:
        known = ", ".join(repr(known) for known in ("auto", *IMPLEMENTATIONS))
        raise InvalidInputError(f"implementation={name!r} is unknown; accepted are {known}")
    reason = IMPLEMENTATIONS[name].unavailable_reason(query)
    if reason is not None:
        raise KernelUnavailableError(f"implementation={name!r} cannot run here: {reason}. Use 'auto' or 'torch'.")
    return name


def available_implementations(query: torch.Tensor) -> dict[str, str | None]:
    """Name -> reason why it cannot take `query`, `None` where it can."""
    return {name: item.unavailable_reason(query) for name, item in IMPLEMENTATIONS.items()}


def load(name: str) -> Attend:
    """Import an implementation and return its `attend`."""
    module = IMPLEMENTATIONS[name].module
    assert module is not None, f"{name} was resolved without a module"
    attend: Attend = importlib.import_module(module).attend
    return attend
